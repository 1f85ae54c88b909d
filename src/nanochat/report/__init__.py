"""The page of a run, and the page of the items of an evaluation: one file each, without scripts or
requests from elsewhere.

`chapter.py` reads run folders, `facts.py` derives what the tables say, `chart.py` draws, the
templates arrange. What a model wrote is untrusted: the templates escape everything, and the pages
forbid their browser to load or run anything else.
"""
