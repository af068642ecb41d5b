"""Tokenizers of other libraries, as `tatok.tokenizer.protocol` wants them: `tokenizer: transformers`, and so on.

transformers     the VQ models of Janus (LlamaGen's VQ-16), Chameleon and Emu3
diffusers        VQModel
autoencoder      AutoencoderKL and AutoencoderTiny of diffusers: no tokenizers, but what one is trained over
torchscript      an encoder and a decoder as TorchScript: NVIDIA Cosmos' discrete tokenizers
autoencoder      AutoencoderKL and AutoencoderTiny of diffusers, to train a tokenizer over their latents
saved_model      a model's files, in a folder or on the Hugging Face hub; weights as safetensors alone
"""
