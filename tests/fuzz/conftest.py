"""How long the fuzzing lasts: in `make test` seconds, with the same examples each time; in `make fuzz` half an hour."""

import os

from hypothesis import HealthCheck, Phase, settings

COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}
# time is bounded by `hostile.bounded`; finding a small example of a failure is for people, who run the campaign
settings.register_profile("ci", max_examples=60, derandomize=True, phases=[Phase.explicit, Phase.generate], **COMMON)
settings.register_profile("campaign", max_examples=3000, **COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))
