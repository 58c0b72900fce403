from __future__ import annotations
def summarise(table): return ""
def draw_pictures(table, folder): pass
