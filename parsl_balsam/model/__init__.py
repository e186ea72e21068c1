"""Values and rules of parsl-balsam: no I/O and no clock; functions take ``now``."""
