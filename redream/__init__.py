"""ReDream: retrieval-augmented score distillation for text-to-3D (arXiv 2402.02972), an open implementation.

retrieval.py    prompt -> similar 3D assets            orientation.py   turn its front to +x
render/mesh.py  asset -> 100 views with cameras        prior/           the 2D prior and its adaptation (Eq. 5)
field/          the radiance field of a particle       render/volume.py rays through it
distill/        SDS, VSD, the retrieval velocity and the regulariser (Eqs. 1 to 4, App. B)
metrics/        CLIP scores, A-LPIPS                    export.py, page.py  mesh, turntable, page
mini/           the embedded miniature: a small world whose truth is known, and the models trained on it
Stages import neither Prefect nor MLflow; `tasks/` and `flows/` do.
"""
