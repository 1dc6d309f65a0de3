"""A campaign against the package: thousands of odd inputs, each in a sandbox, and one verdict on each.

`python -m tests.campaign --cases 2000 --seed 0 --jobs 2` runs it; `python -m tests.campaign.kills` kills runs instead.
"""
