"""Every key of a run with its default. Locked: a misspelt key raises. A run's own file sets only what differs.

Values marked (paper) are Draw-In-Mind's, arXiv 2509.01986; the others are ours.
"""

from ml_collections import ConfigDict

from dim_jax.weights.logical_axes import RULES


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.objective = "painter"  # what is trained: "painter" (connector and SANA), "autoencoder" or "encoder"
    config.trainable = ("connector", "sana")  # (paper) parts that learn; every part of the objective is in exactly one of the two
    config.frozen = ("encoder", "autoencoder")  # (paper) parts that do not: no gradient, no optimizer state; a run's "teacher" too
    config.seed = 0  # of fresh parameters, data order, noise, times and dropout

    config.model = ConfigDict()
    config.model.encoder = "qwen_3b"  # (paper) sizes of parts that no checkpoint brings
    config.model.sana = "sana_1600m"  # (paper)
    config.model.autoencoder = "f32c32"  # (paper)
    config.model.width = 0  # of a SANA that no checkpoint brings; 0: as its preset says
    config.model.edit = False  # whether SANA reads a source; one that does not yet grows
    config.model.condition_length = 8192  # (paper) rows of the null table; a shorter one grows
    config.model.dtype = "bfloat16"  # of computation; parameters are float32. "float32" has exact products, "tf32" fast ones
    config.model.quantize = "none"  # of frozen weights under a LoRA: "int8" or "int4" in the encoder's and SANA's large layers
    config.model.float8 = False  # the large products of SANA's blocks and their gradients in float8, for GPUs since H100
    config.model.remat = (
        "all"  # what of SANA's blocks a backward pass computes again: "all", all but "narrow" results or "products", or "none"
    )

    config.lora = ConfigDict()  # low-rank adapters (docs/lora.md)
    config.lora.rank = 0  # of the adapters, which then learn instead of the trainable parts' own parameters; 0: no adapters
    config.lora.alpha = 16.0  # what an adapter adds is scaled by alpha / rank
    config.lora.targets = ("connector.*", "sana.blocks.*")  # patterns of linear layers, such as "sana.blocks.attn.qkv"

    config.init = ConfigDict()  # the checkpoint (any format) that each part comes from; "": drawn anew
    config.init.encoder = ""
    config.init.connector = ""
    config.init.sana = ""
    config.init.autoencoder = ""
    config.init.teacher = ""  # of a distillation, or an anchor of rewards: a painter, whose SANA stays frozen

    config.data = ConfigDict()
    config.data.source = "synthetic"  # a folder of `dim prepare` (docs/data.md); or random pictures and words
    config.data.mix = ConfigDict({"edit": 0.0, "caption": 1.0})  # weights by kind, of other sources by "KIND:SOURCE"; a batch is of one
    config.data.curriculum = ()  # ((STEP, {weights}), ...): what takes the place of mix after so many steps; the names are those of mix
    config.data.cache = ""  # a folder of `dim cache`: what the frozen parts make of each row is read, not computed; "": computed
    config.data.bad_samples = 0  # rows that may be unusable before the run stops; others of their bucket stand in for them
    config.data.balance = 0.0  # how much more often rare rules of edits are seen: 0 as they are, 1 every rule alike
    config.data.text = "blueprint"  # the prompt of an edit: "blueprint" or "instruction"
    config.data.tokenizer = ""  # a folder; "": the encoder's own, or for a fresh encoder one trained on the texts
    config.data.resolution = 1024  # (paper) pixels a side
    config.data.max_aspect_ratio = 1.0  # (paper) 1: all pictures square; else sizes of as many pixels, up to so many times longer
    config.data.shift = 0  # pixels by which the pictures of an example are moved at most, together, so that small data last longer
    config.data.mirrored = ()  # rules of edits of which every second example is mirrored, both pictures: those that name no side
    config.data.recoloured = ()  # rules of which every second has its hues turned, both pictures: those that name no colour
    config.data.lengths = (1600, 1792, 2048, 2560, 4096)  # buckets of tokens, the template's 16 included; one compiled program each
    config.data.batch_size = 256
    config.data.workers = 0  # processes that load data; 0: threads

    config.flow = ConfigDict()
    config.flow.draw = "logit_normal"  # (paper) of the time: or "uniform"
    config.flow.std = 1.0  # (paper) "logit_normal": of the logits; less trains more on middle times
    config.flow.shift = 3.0  # (paper) more than 1 trains more on high noise: its logarithm is the mean of the logits
    config.flow.condition_dropout = 0.1
    config.flow.source_dropout = 0.0  # of an edit's source latents, drawn apart from the condition's: what image guidance needs

    config.flow.contrastive = 0.0  # how much distances to other rows' velocities count (arXiv 2506.05350: 0.05); 0: not

    config.repa = ConfigDict()  # SANA's hidden states learn to resemble what the encoder sees in the target (arXiv 2410.06940)
    config.repa.weight = 0.0  # of their mean cosine similarity (arXiv: 0.5); 0: not. "repa", the projection, is a trainable part then
    config.repa.block = 6  # blocks after which they are taken

    config.distill = ConfigDict()  # a student learns what config.init.teacher paints (docs/few_steps.md)
    config.distill.method = "none"  # "guidance": in one branch in place of two; "steps": in config.sample.num_steps steps of one branch
    config.distill.guidance_scales = (1.0, 10.0)  # of the teacher, drawn between the two, an input of the student; one scale twice: fixed
    config.distill.velocities = 5  # "steps": that the student predicts for each step, at evenly spaced times of it
    config.distill.times = 2  # "steps": at which a step is compared with the teacher

    config.reward = ConfigDict()  # the painter learns from rewards of what it paints itself (docs/reward.md)
    config.reward.method = "none"  # "target": nearer to the target, unchanged elsewhere; "judge": the score of a model on a server
    config.reward.pictures = 8  # of each edit, painted as config.sample says and compared with each other
    config.reward.times = 2  # of its way from noise at which each of them is learned from
    config.reward.beta = 1.0  # (DiffusionNFT) less is a larger step away from the policy that painted
    config.reward.clip = 5.0  # (DiffusionNFT) standard deviations of a group at which a reward counts as wholly good or bad
    config.reward.anchor = 0.0  # of the squared distance from the velocity of config.init.teacher; 0: no teacher
    config.reward.judge = ""  # KIND:MODEL, as --judge of `dim evaluate`
    config.reward.base_url = ""  # of its server; "": of its kind
    config.reward.concurrency = 8  # pictures that are judged at once

    config.autoencoder = ConfigDict()
    config.autoencoder.latent_noise = 0.1  # of the latents' spread, added before they are decoded
    config.autoencoder.spread_weight = 0.01  # of the squared logarithm of that spread

    config.optim = ConfigDict()
    config.optim.name = "adamw"  # (paper) or "muon" for matrices, which saves their second moments
    config.optim.learning_rate = 2e-5  # (paper)
    config.optim.mup_base_width = 0  # the width of SANA that this rate suits; in others its matrices' rate is less (muP); 0: all alike
    config.optim.accumulate = 1  # batches whose gradients make one update; a step is a batch
    config.optim.warmup_steps = 1000  # updates
    config.optim.cosine = False  # after the warm-up: down to zero along a cosine, or constant
    config.optim.weight_decay = 0.01
    config.optim.undecayed = ("scale", "bias", "scale_shift_table", "y_embedding")  # last names of parameters that do not; (): all decay
    config.optim.betas = (0.9, 0.999)
    config.optim.eps = 1e-8
    config.optim.mu_dtype = "float32"  # of the first moments; "bfloat16" takes half their memory
    config.optim.clip_global_norm = 1.0
    config.optim.ema_decay = 0.9999  # of the averaged parameters, which are what is exported; less in the first steps

    config.sharding = ConfigDict()  # sizes of the mesh; one of them may be -1: all that the others leave of the devices
    config.sharding.slices = 1  # parts of the machine that a slower network joins (DCN), each with a copy of the parameters
    config.sharding.data = 1  # copies of the parameters; with fsdp, what the rows of a batch are spread over
    config.sharding.fsdp = 1  # parts that every parameter is cut into and gathered from; the full-size model: up to 64
    config.sharding.tensor = 1  # parts that the work of a layer is cut into; the full-size model: 1 or 2
    config.sharding.gather = "layer"  # when learning parameters are gathered: by "layer", forward and backward, or once a "step"
    config.sharding.rules = ConfigDict(RULES)  # logical axis -> the mesh axis that cuts it (dim_jax/weights/logical_axes.py); "": none

    config.train = ConfigDict()
    config.train.steps = 100_000
    config.train.log_every = 50  # steps; the log has their mean
    config.train.save_every = 1000
    config.train.show_every = 5000  # how often held-out examples are shown; 0: never
    config.train.keep = 2  # the latest checkpoints
    config.train.keep_every = 0  # and those at multiples of this, a multiple of save_every; 0: no others
    config.train.watchdog_minutes = 0.0  # a run without a step for so long ends, for a scheduler to start it again; 0: never

    config.sample = ConfigDict()  # how the trained painter paints, for sheets and as the settings of its checkpoint
    config.sample.num_steps = 30  # (paper)
    config.sample.guidance_scale = 7.5  # (paper)
    config.sample.image_guidance_scale = 1.0  # 1: off; more keeps nearer to the source, after training with source_dropout
    config.sample.flow_shift = 3.0  # (paper)
    config.sample.blueprint_from = "prompt"  # what its encoder writes blueprints from: the designer's prompt, or the bare "instruction"
    return config.lock()
