"""What a run, or a folder of shards, looks like: one HTML page, a sheet of molecules, a page of text.

Importing this package loads neither Bokeh nor UMAP; `write_report` does.
"""

from mmsa_dist.report.inspect import ShardStatistics, contact_sheet, inspect_shards
from mmsa_dist.report.inspection import render_inspection
from mmsa_dist.report.page import write_report

__all__ = ["ShardStatistics", "contact_sheet", "inspect_shards", "render_inspection", "write_report"]
