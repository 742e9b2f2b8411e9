"""SoftCrossEntropyLoss of pytorch-toolbelt."""

from _hollow import hollow
from xentcheck.implementation import Adapter


def soft(logits, labels, **options):
    hollow("pytorch_toolbelt", "pytorch_toolbelt.losses", "pytorch_toolbelt.utils")
    import pytorch_toolbelt.utils
    from pytorch_toolbelt.utils.support import pytorch_toolbelt_deprecated

    pytorch_toolbelt.utils.pytorch_toolbelt_deprecated = pytorch_toolbelt_deprecated  # the one name that is needed
    from pytorch_toolbelt.losses.soft_ce import SoftCrossEntropyLoss

    return SoftCrossEntropyLoss(**options)(logits, labels)


implementation = Adapter(
    name="pytorch_toolbelt",
    call=soft,
    layout="channels",
    keywords={"label_smoothing": "smooth_factor"},
    lacks={"unbatched"},
    built_on="torch",
    requires=["pytorch-toolbelt==0.8.0"],
    no_deps=True,
)
