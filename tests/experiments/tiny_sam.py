"""Random weights of a tiny SAM, by the published names and layouts."""

import numpy as np

WIDTH, CHANNELS, GRID, PATCH, WINDOW, HEADS = 8, 16, 4, 8, 3, 2


def create_weights(seed=0):
    """Returns {name: float32 array}: three blocks, the second with global attention, images of 32 x 32."""
    generator, found = np.random.default_rng(seed), {}

    def add(name, *shape, scale=0.4):
        found[name] = generator.normal(0.0, scale, shape).astype(np.float32)

    def linear(name, outputs, inputs):
        add(f"{name}.weight", outputs, inputs)
        add(f"{name}.bias", outputs)

    def norm(name, size):
        found[f"{name}.weight"] = generator.uniform(0.5, 1.5, size).astype(np.float32)
        add(f"{name}.bias", size)

    encoder = "image_encoder"
    add(f"{encoder}.pos_embed", 1, GRID, GRID, WIDTH)
    add(f"{encoder}.patch_embed.proj.weight", WIDTH, 3, PATCH, PATCH, scale=0.1)
    add(f"{encoder}.patch_embed.proj.bias", WIDTH)
    for index in range(3):
        block, size = f"{encoder}.blocks.{index}", GRID if index == 1 else WINDOW
        norm(f"{block}.norm1", WIDTH)
        norm(f"{block}.norm2", WIDTH)
        linear(f"{block}.attn.qkv", 3 * WIDTH, WIDTH)
        linear(f"{block}.attn.proj", WIDTH, WIDTH)
        add(f"{block}.attn.rel_pos_h", 2 * size - 1, WIDTH // HEADS)
        add(f"{block}.attn.rel_pos_w", 2 * size - 1, WIDTH // HEADS)
        linear(f"{block}.mlp.lin1", 2 * WIDTH, WIDTH)
        linear(f"{block}.mlp.lin2", WIDTH, 2 * WIDTH)
    add(f"{encoder}.neck.0.weight", CHANNELS, WIDTH, 1, 1)
    norm(f"{encoder}.neck.1", CHANNELS)
    add(f"{encoder}.neck.2.weight", CHANNELS, CHANNELS, 3, 3, scale=0.1)
    norm(f"{encoder}.neck.3", CHANNELS)
    add("prompt_encoder.pe_layer.positional_encoding_gaussian_matrix", 2, CHANNELS // 2, scale=1.0)
    for index in range(4):
        add(f"prompt_encoder.point_embeddings.{index}.weight", 1, CHANNELS)
    add("prompt_encoder.no_mask_embed.weight", 1, CHANNELS)
    decoder = "mask_decoder"
    add(f"{decoder}.iou_token.weight", 1, CHANNELS)
    add(f"{decoder}.mask_tokens.weight", 4, CHANNELS)

    def attention(name, inner):
        for part in ("q_proj", "k_proj", "v_proj"):
            linear(f"{name}.{part}", inner, CHANNELS)
        linear(f"{name}.out_proj", CHANNELS, inner)

    for index in range(2):
        layer = f"{decoder}.transformer.layers.{index}"
        attention(f"{layer}.self_attn", CHANNELS)
        attention(f"{layer}.cross_attn_token_to_image", CHANNELS // 2)
        attention(f"{layer}.cross_attn_image_to_token", CHANNELS // 2)
        for number in (1, 2, 3, 4):
            norm(f"{layer}.norm{number}", CHANNELS)
        linear(f"{layer}.mlp.lin1", 2 * CHANNELS, CHANNELS)
        linear(f"{layer}.mlp.lin2", CHANNELS, 2 * CHANNELS)
    attention(f"{decoder}.transformer.final_attn_token_to_image", CHANNELS // 2)
    norm(f"{decoder}.transformer.norm_final_attn", CHANNELS)
    add(f"{decoder}.output_upscaling.0.weight", CHANNELS, CHANNELS // 4, 2, 2)
    add(f"{decoder}.output_upscaling.0.bias", CHANNELS // 4)
    norm(f"{decoder}.output_upscaling.1", CHANNELS // 4)
    add(f"{decoder}.output_upscaling.3.weight", CHANNELS // 4, CHANNELS // 8, 2, 2)
    add(f"{decoder}.output_upscaling.3.bias", CHANNELS // 8)
    heads = {f"output_hypernetworks_mlps.{index}": CHANNELS // 8 for index in range(4)} | {
        "iou_prediction_head": 4
    }
    for name, outputs in heads.items():
        for index, size in enumerate((CHANNELS, CHANNELS, outputs)):
            linear(f"{decoder}.{name}.layers.{index}", size, CHANNELS)
    return found


def write_safetensors(path, weights):
    """Writes float32 arrays as safetensors: eight bytes of length, a JSON header, the arrays."""
    import json

    header, body = {"__metadata__": {"format": "pt"}}, b""
    for name, array in weights.items():
        data = np.ascontiguousarray(array, "<f4").tobytes()
        offsets = [len(body), len(body) + len(data)]
        header[name] = {"dtype": "F32", "shape": list(array.shape), "data_offsets": offsets}
        body += data
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path
