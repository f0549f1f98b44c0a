"""ReDream: retrieval-augmented score distillation for text-to-3D (arXiv 2402.02972), an open implementation.

pipeline.py     every stage once, in one sitting       settings.py, presets.py  what can be set
retrieval/      prompt -> similar 3D assets            orientation.py   turn an asset's front to +x
render/mesh.py  asset -> 100 views with cameras        prior/           the 2D prior and its adaptation (Eq. 5)
field/          the radiance field of a particle       render/volume.py rays through it
distill/        SDS, VSD, the retrieval velocity and the regulariser (Eqs. 1 to 4, App. B)
metrics/        CLIP scores, A-LPIPS                   export.py, pages/  mesh, turntable, page
meshes/         mesh files of strangers, read safely   mini/            the embedded miniature and its models
Stages import neither Prefect nor MLflow; `tasks/` and `flows/` do.
"""
