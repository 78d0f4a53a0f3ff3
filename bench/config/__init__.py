"""Turn a command line and YAML files into a config, and a config into objects."""
