"""What a study will take before it runs, and what it took: plan, calibration, cost. Nothing here imports torch but
`machine.measure` and the pilots, which run units."""
