pytest_plugins = ["xentcheck.pytest_plugin.session", "xentcheck.pytest_plugin.cost", "xentcheck.pytest_plugin.gate"]
