"""A page on this machine where a person accepts or rejects the suspects of a run.

The server answers to this machine only, to who knows the token in its address, and under its own name: another user's
browser, or a page of another site that has been led to this port, gets nothing. Names in the data set come from an
attacker and are treated so: everything is escaped, and a content security policy forbids all but the page's own script.
"""
