"""Label-free data: bodies, deposits, and the physics that turns both into CT and STIR.

Parameters are drawn apart from rendering (``sample_*`` then ``render_*``), so a case can be replayed from its record.
"""
