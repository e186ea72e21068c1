"""The command line: ``parsl-balsam``."""
