"""F2: from image files to batched episodes, with numpy only.

benchmarks: coco label_maps voc class_folders lvis parts packed inspection -> sources
protocols, benchmarks, published lists -> draws, episodes
frames rasters augment cues scribbles -> batches -> pipeline
doctor: what is wrong with a folder of data

Worker processes load these rooms, so none of them imports jax.
"""
