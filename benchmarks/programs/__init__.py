"""Programs that are measured, each run in a fresh process. They print what they found as JSON."""
