"""What all tests share: no deadline for an example; a machine that does other work is slow, not wrong."""

from hypothesis import settings

settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
