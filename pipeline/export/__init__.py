"""A dataset in other forms.

base             what every export does: rows in order, all or nothing
webdataset       tars
megatron         Megatron-LM's indexed dataset
mds              MosaicML Streaming
hub              the Hugging Face Hub
hub_card         its card
merge            many parts -> few
compact          the same dataset in fewer parts
"""
