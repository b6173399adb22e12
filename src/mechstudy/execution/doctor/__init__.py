"""`mechstudy doctor`: is this machine fit for a study, and what held a run up."""
