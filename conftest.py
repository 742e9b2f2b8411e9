pytest_plugins = ["xentcheck.pytest_plugin.conformance", "xentcheck.pytest_plugin.cost", "xentcheck.pytest_plugin.gate"]
