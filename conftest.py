pytest_plugins = ["xentcheck.plugin", "xentcheck.plugin_cost", "xentcheck.plugin_gate"]
