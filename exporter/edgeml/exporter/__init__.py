"""Turn a model into a bundle, with the proof that it is still the same model.

    from edgeml.exporter.pipeline import export
    from edgeml.exporter.plan import make_plan

    exported = export(make_plan("kws.h5", to="onnx,tflite", calib="calib.npz", precision="fp32,int8", out="bundles"))

Nothing is imported here: workers start through this package, and start fast.
"""
