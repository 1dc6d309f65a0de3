"""Run folder → one HTML file that opens offline, on a phone, in the dark and on paper.

The page has no script and fetches nothing: charts are inline SVG, pictures are data URIs, and a content
security policy forbids the rest. Names in the data set come from an attacker and are treated so.
"""

from antibackdoor.report.attention import Attention, save_attention, small_inputs
from antibackdoor.report.card import Changes, Visibility, visibility, write_card
from antibackdoor.report.comparison import COLUMNS, ComparedRun, text_table, write_methods_page
from antibackdoor.report.gallery import Gallery, load_gallery, save_gallery
from antibackdoor.report.page import write_comparison, write_report

__all__ = [
    "COLUMNS",
    "Attention",
    "Changes",
    "ComparedRun",
    "Gallery",
    "Visibility",
    "load_gallery",
    "save_attention",
    "save_gallery",
    "small_inputs",
    "text_table",
    "visibility",
    "write_card",
    "write_comparison",
    "write_methods_page",
    "write_report",
]
