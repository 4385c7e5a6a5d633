"""The plain Vision Transformer (ViT) that SETR and Segmenter share.

Paper: Dosovitskiy et al., ICLR 2021, arXiv 2010.11929; with a distillation token: DeiT, arXiv 2012.12877.
Parameters have timm's names (`patch_embed.proj`, `cls_token`, `pos_embed`, `blocks.0.attn.qkv`, `norm`), because the
public weights do. Differs from classification: images of any size and shape, and outputs of chosen blocks as maps.

Shapes: B images, C channels, P prefix tokens (class, distillation), N = h * w patches; (H, W) the image in pixels and
(h, w) = (ceil(H / patch_size), ceil(W / patch_size)) the grid of patches.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import BitBackbone, BitConfig, GradientCheckpointingLayer, PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils.import_utils import is_torchdynamo_exporting

from .cpu import Linear
from .layers import DropPath, eager_attention_forward, map_to_tokens, padding_of, refuse_tracing, tokens_to_map


# Position tables kept for other image sizes than the native one; an evaluation that keeps aspect ratios meets many.
CACHED_TABLES = 8


class PatchEmbed(nn.Module):
    """Image to patch embeddings: one convolution, or a ResNet of stride 16 and a 1x1 convolution (ViT-hybrid).

    An image that is not a multiple of the patch is padded with 0 (after normalisation) at the right and bottom.

    Shape:
        pixel_values: (B, num_channels, H, W)
        returns: (B, C, h, w), channels-last in memory
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.patch_size = config.patch_size
        stem_depths = getattr(config, "stem_depths", None)
        self.backbone = None
        if stem_depths is None:
            self.proj = nn.Conv2d(config.num_channels, config.hidden_size, self.patch_size, stride=self.patch_size)
        else:
            stem = BitConfig(
                num_channels=config.num_channels,
                embedding_size=config.stem_hidden_sizes[0] // 4,
                hidden_sizes=list(config.stem_hidden_sizes),
                depths=list(stem_depths),
                layer_type="bottleneck",
                global_padding="same",
                embedding_dynamic_padding=True,
                out_features=[f"stage{len(stem_depths)}"],
            )
            self.backbone = BitBackbone(stem)
            self.proj = nn.Conv2d(config.stem_hidden_sizes[-1], config.hidden_size, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        height, width = pixel_values.shape[2:]
        bottom, right = padding_of(height, self.patch_size), padding_of(width, self.patch_size)
        if torch.compiler.is_exporting() or bottom or right:  # an export must serve every size
            pixel_values = F.pad(pixel_values, (0, right, 0, bottom))
        if self.backbone is not None:
            pixel_values = self.backbone(pixel_values).feature_maps[-1]  # (B, stem_hidden_sizes[-1], h, w)
        return self.proj(pixel_values.contiguous(memory_format=torch.channels_last))


class Attention(nn.Module):
    """Multi-head self-attention with one matrix for queries, keys and values.

    Shape:
        tokens: (B, N, C)
        returns: (B, N, C) and the weights (B, heads, N, N), None unless eager
    """

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        self.config = config
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.dropout = config.attention_probs_dropout_prob
        self.qkv = Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = Linear(config.hidden_size, config.hidden_size)

    def forward(self, tokens: torch.Tensor, **kwargs) -> tuple[torch.Tensor, torch.Tensor | None]:
        qkv = self.qkv(tokens).unflatten(-1, (3, self.num_heads, self.head_dim))  # (B, N, 3, heads, d)
        query, key, value = qkv.transpose(1, 3).unbind(2)  # (B, heads, N, d) each
        attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        context, weights = attention(
            self,
            query,
            key,
            value,
            None,
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
            **kwargs,
        )  # (B, N, heads, d)
        return self.proj(context.reshape(tokens.shape)), weights


class Mlp(nn.Module):
    """Two linear layers with the activation between. (B, N, C) -> the same."""

    def __init__(self, config: PreTrainedConfig):
        super().__init__()
        hidden = int(config.hidden_size * config.mlp_ratio)
        self.fc1 = Linear(config.hidden_size, hidden)
        self.act = ACT2FN[config.hidden_act]
        self.fc2 = Linear(hidden, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.fc2(self.dropout(self.act(self.fc1(tokens)))))


class Block(GradientCheckpointingLayer):
    """Pre-norm transformer block: attention and MLP, each with a residual. (B, N, C) -> the same."""

    def __init__(self, config: PreTrainedConfig, drop_path_rate: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attn = Attention(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = Mlp(config)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = DropPath(drop_path_rate)

    def forward(self, tokens: torch.Tensor, **kwargs) -> torch.Tensor:
        tokens = tokens + self.drop_path(self.dropout(self.attn(self.norm1(tokens), **kwargs)[0]))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class VisionTransformer(nn.Module):
    """Patches and prefix tokens plus positions through the blocks.

    Args:
        config: reads image_size, patch_size, num_channels, hidden_size, num_hidden_layers, num_attention_heads,
            mlp_ratio, hidden_act, hidden_dropout_prob, attention_probs_dropout_prob, drop_path_rate, layer_norm_eps,
            position_resize_mode, use_distillation_token and, where they exist, stem_depths and stem_hidden_sizes.
        final_norm: whether a LayerNorm follows the last block.
        drop_prefix: whether class and distillation tokens leave before the first block.

    Shape:
        pixel_values: (B, num_channels, H, W), normalised; any size
        feature_indices: blocks, counted from 0, whose outputs (before the final norm) are wanted as maps
        returns: tokens (B, P + N, C) (P = 0 with `drop_prefix`), and one map (B, C, h, w) per index, prefix left out
    """

    def __init__(self, config: PreTrainedConfig, final_norm: bool, drop_prefix: bool = False):
        super().__init__()
        width = config.hidden_size
        side = config.image_size
        height, width_px = (side, side) if isinstance(side, int) else side
        self.grid_size = (-(-height // config.patch_size), -(-width_px // config.patch_size))
        self.position_resize_mode = config.position_resize_mode
        self.num_prefix_tokens = 2 if config.use_distillation_token else 1
        self.drop_prefix = drop_prefix
        self.patch_embed = PatchEmbed(config)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, width)) if config.use_distillation_token else None
        positions = self.num_prefix_tokens + self.grid_size[0] * self.grid_size[1]
        self.pos_embed = nn.Parameter(torch.zeros(1, positions, width))
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        depth = config.num_hidden_layers
        rates = [config.drop_path_rate * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(Block(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if final_norm else nn.Identity()
        self._tables: dict[tuple, torch.Tensor] = {}  # position tables of other sizes, see `position_table`

    def initialize_tokens(self, std: float):
        """Truncated normal, as the authors' code of ViT, SETR and Segmenter has it."""
        for parameter in (self.cls_token, self.dist_token, self.pos_embed):
            if parameter is not None:
                init.trunc_normal_(parameter, mean=0.0, std=std)

    def train(self, mode: bool = True):
        self._tables.clear()  # whatever happens to the weights in training, evaluation starts with new tables
        return super().train(mode)

    def position_table(self, size: tuple[int, int]) -> torch.Tensor:
        """Positions for a grid of `size` patches: the table itself at its own size, else resized, (1, P + N, C).

        Resized tables are kept where no gradient is wanted, as long as the weights stay what they were.
        """
        if not is_torchdynamo_exporting() and tuple(size) == self.grid_size:  # an export must serve every size
            return self.pos_embed
        table = self.pos_embed
        if torch.compiler.is_compiling() or (torch.is_grad_enabled() and table.requires_grad):
            return self.resized_positions(size)
        key = (*size, table.data_ptr(), table._version, table.device, table.dtype)
        if key not in self._tables:
            while len(self._tables) >= CACHED_TABLES:
                self._tables.pop(next(iter(self._tables)))
            self._tables[key] = self.resized_positions(size)
        return self._tables[key]

    def resized_positions(self, size: tuple[int, int]) -> torch.Tensor:
        prefix, patches = self.pos_embed.tensor_split((self.num_prefix_tokens,), dim=1)
        patches = tokens_to_map(patches, self.grid_size)  # (1, C, native h, native w)
        patches = F.interpolate(patches, size=size, mode=self.position_resize_mode, align_corners=False)
        return torch.cat((prefix, map_to_tokens(patches)), dim=1)

    def forward(
        self, pixel_values: torch.Tensor, feature_indices: tuple[int, ...] = (), **kwargs
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        tokens, size = self.embed(pixel_values)
        first_patch = 0 if self.drop_prefix else self.num_prefix_tokens
        feature_maps = {}
        for index, block in enumerate(self.blocks):
            tokens = block(tokens, **kwargs)
            if index in feature_indices:
                feature_maps[index] = tokens_to_map(tokens[:, first_patch:], size)  # (B, C, h, w)
        return self.norm(tokens), [feature_maps[index] for index in feature_indices]

    def embed(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int]]:
        """The tokens with their positions before the first block, (B, P + N, C), and the grid of patches (h, w)."""
        refuse_tracing()
        patches = self.patch_embed(pixel_values)  # (B, C, h, w)
        size = patches.shape[2:]
        tokens = [self.cls_token] if self.dist_token is None else [self.cls_token, self.dist_token]
        tokens = [token.expand(patches.shape[0], -1, -1) for token in tokens] + [map_to_tokens(patches)]
        tokens = self.dropout(torch.cat(tokens, dim=1) + self.position_table(size))  # (B, P + N, C)
        if self.drop_prefix:
            tokens = tokens[:, self.num_prefix_tokens :]  # (B, N, C)
        return tokens, size
