"""From a command line and YAML files to a config, and from a config to objects."""
