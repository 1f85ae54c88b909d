"""The page of a run, and the page of the items of an evaluation: one file each,
without network requests.

`chapter.py` reads run folders, `facts.py` computes the content of the tables, `chart.py` draws, the
templates arrange. Text of a model is untrusted: the templates escape everything, and a content
security policy keeps the browser from loading or running anything else.
"""
