"""F2: from image files to batched episodes, with numpy only.

sources (coco, label_maps) -> episodes -> rasters, augment, cues -> pipeline. Worker
processes load these rooms, so none of them imports jax.
"""
