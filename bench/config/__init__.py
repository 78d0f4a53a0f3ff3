"""Configuration: a command line and YAML files become a config, and a config becomes objects."""
