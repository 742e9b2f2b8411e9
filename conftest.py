pytest_plugins = ["xentcheck.plugin"]
