"""Makes the golden data of the model families: folders as each family publishes them (small files only) over a
few tiny encoders with random weights, and what torch and transformers (CPU, float32) say they return for a
stored and for a searched text.

usage: make_families.py EMBEDDING_GOLDEN_DIR OUT_DIR
  EMBEDDING_GOLDEN_DIR  ../../../tests/data/embedding-golden
  OUT_DIR               . (this folder): writes families.json and families/WEIGHTS/
needs: torch transformers tokenizers safetensors numpy

The small files are written down here as the hub has them; what a family's encoder is, transformers knows.
The tokenizers are those of tiny-splade (WordPiece) and tiny-bge-m3 (XLM-R's, cut down).
Pooling, the layer behind it, normalization and prompts are applied here as sentence-transformers' modules and
the model cards say. GTE is transformers' GteModel under the names of the published files.
"""
import json, os, sys
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from transformers import BertConfig, BertModel, GteConfig, GteForSequenceClassification, GteModel, XLMRobertaConfig, XLMRobertaModel

golden, out = sys.argv[1:]
torch.set_num_threads(1)
BERT = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'tiny-splade')   # a WordPiece tokenizer
XLMR = os.path.join(golden, 'tiny-bge-m3')                                       # XLM-R's own, cut down
sentences = json.load(open(os.path.join(golden, 'sentences.json')))
DOCUMENTS, QUERIES = sentences[:3] + [sentences[22]], [sentences[3], sentences[5]]

def randomize(model, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            norm = 'norm' in name.lower() and name.endswith('weight')
            p.copy_((1 + 0.3 * noise if norm else 0.25 * noise).half().float())   # exact in float16
    return model.eval()

def save(name, config, tensors):
    folder = os.path.join(out, 'families', name); os.makedirs(folder, exist_ok=True)
    json.dump(config, open(f'{folder}/config.json', 'w'), indent=1)
    save_file({k: v.detach().half().contiguous() for k, v in tensors.items()}, f'{folder}/model.safetensors', metadata={'format': 'pt'})

def vocabulary(tokenizer): return Tokenizer.from_file(f'{tokenizer}/tokenizer.json').get_vocab_size()

# ---- encoders: name -> (tokenizer folder, function from ids to hidden states)

small = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48)
encoders = {}

def bert(name, tokenizer, seed):
    sizes = dict(vocab_size=vocabulary(tokenizer), max_position_embeddings=128, type_vocab_size=2, layer_norm_eps=1e-12,
                 hidden_act='gelu', pad_token_id=0, **small)
    model = randomize(BertModel(BertConfig(**sizes), add_pooling_layer=False), seed)
    save(name, {'architectures': ['BertModel'], 'model_type': 'bert', **sizes},
         {k: v for k, v in model.state_dict().items() if 'position_ids' not in k})
    encoders[name] = (tokenizer, lambda ids: model(input_ids=torch.tensor([ids])).last_hidden_state[0])

bert('bert', BERT, 11)
bert('bert-xlmr-words', XLMR, 12)

config = json.load(open(f'{XLMR}/config.json'))
model = XLMRobertaModel(XLMRobertaConfig(**{k: v for k, v in config.items() if k not in ('architectures', 'model_type', 'torch_dtype', 'dtype')}), add_pooling_layer=False)
missing = model.load_state_dict({k.removeprefix('roberta.'): v.float() for k, v in load_file(f'{XLMR}/model.safetensors').items()}, strict=False)
assert not missing.missing_keys or all('pooler' in k for k in missing.missing_keys), missing
xlmr = model.eval()
encoders['tiny-bge-m3'] = (XLMR, lambda ids: xlmr(input_ids=torch.tensor([ids])).last_hidden_state[0])

def gte(name, tokenizer, seed, types, theta, factor, kind, packed=True):
    """transformers' GteModel, saved under the names of the published files (`new.…`)."""
    sizes = dict(vocab_size=vocabulary(tokenizer), max_position_embeddings=256, type_vocab_size=types, layer_norm_eps=1e-12,
                 hidden_act='gelu', pad_token_id=1 if tokenizer == XLMR else 0, **small)
    config = GteConfig(**sizes, num_labels=1, rope_parameters={'rope_type': 'default', 'rope_theta': theta})
    full = GteForSequenceClassification(config) if kind == 'NewForSequenceClassification' else GteModel(config)
    model = randomize(full, seed)
    base = model.gte if kind == 'NewForSequenceClassification' else model
    # "NTK" with a fixed factor, as the published modelling code has it
    width = small['hidden_size'] // small['num_attention_heads']
    speeds = 1.0 / ((theta * factor) ** (torch.arange(0, width, 2).float() / width)) / factor ** (2 / width)
    base.rotary_emb.inv_freq.copy_(speeds)
    prefix = '' if kind == 'NewModel' else 'new.'
    state, tensors = dict(base.state_dict()), {}
    for key in [k for k in state if 'inv_freq' not in k]:
        new = key.replace('layers.', 'encoder.layer.').replace('self_attn.o_proj', 'attention.o_proj')
        new = new.replace('post_attention_layernorm', 'attn_ln').replace('post_mlp_layernorm', 'mlp_ln')
        if 'self_attn.q_proj' in new and packed:
            parts = [state[key.replace('q_proj', p)] for p in ('q_proj', 'k_proj', 'v_proj')]
            tensors[prefix + new.replace('self_attn.q_proj', 'attention.qkv_proj')] = torch.cat(parts)
        elif 'self_attn' in new and not packed:
            tensors[prefix + new.replace('self_attn', 'attention')] = state[key]
        elif 'mlp.up_proj' in new:
            tensors[prefix + new.replace('up_proj', 'up_gate_proj')] = torch.cat([state[key], state[key.replace('up_proj', 'gate_proj')]])
        elif 'self_attn' not in new and 'mlp.gate_proj' not in new:
            tensors[prefix + new] = state[key]
    classifier = torch.nn.Linear(small['hidden_size'], 1)
    if kind == 'NewForTokenClassification': randomize(classifier, seed + 1)
    if kind == 'NewForSequenceClassification': classifier = model.classifier
    if kind != 'NewModel': tensors |= {'classifier.weight': classifier.weight, 'classifier.bias': classifier.bias}
    published = {'architectures': [kind], 'model_type': 'new', **sizes, 'rope_theta': theta, 'rope_scaling': {'factor': factor, 'type': 'ntk'},
                 'position_embedding_type': 'rope', 'layer_norm_type': 'layer_norm', 'logn_attention_scale': False, 'pack_qkv': packed}
    if kind != 'NewModel': published['id2label'] = {'0': 'LABEL_0'}
    save(name, published, tensors)
    encoders[name] = (tokenizer, lambda ids: base(input_ids=torch.tensor([ids])).last_hidden_state[0])
    return model, classifier

_, lexical = gte('gte-multilingual', XLMR, 21, 1, 20000.0, 8.0, 'NewForTokenClassification')
gte('gte-en', BERT, 22, 0, 500000.0, 2.0, 'NewModel', packed=False)
reranker, _ = gte('gte-reranker', XLMR, 23, 1, 20000.0, 8.0, 'NewForSequenceClassification')

# ---- families

def module(i, kind, path): return {'idx': i, 'name': str(i), 'path': path, 'type': f'sentence_transformers.models.{kind}'}

def files(width, pooling, normalize, dense=None, prompts=None, length=512, newer=False):
    if newer: mode = {'pooling_mode': pooling}
    else: mode = {'pooling_mode_cls_token': pooling == 'cls', 'pooling_mode_mean_tokens': pooling == 'mean', 'pooling_mode_max_tokens': False, 'pooling_mode_mean_sqrt_len_tokens': False}
    modules = [('Transformer', ''), ('Pooling', '1_Pooling')] + [('Dense', '2_Dense')] * bool(dense) + [('Normalize', f'{2 + bool(dense)}_Normalize')] * normalize
    written = {'modules.json': [module(i, *m) for i, m in enumerate(modules)],
               '1_Pooling/config.json': {'word_embedding_dimension': width, **mode},
               'sentence_bert_config.json': {'max_seq_length': length, 'do_lower_case': False}}
    if dense: written['2_Dense/config.json'] = {'in_features': width, 'out_features': dense, 'bias': True, 'activation_function': 'torch.nn.modules.linear.Identity'}
    if prompts is not None: written['config_sentence_transformers.json'] = {'__version__': {}, 'prompts': prompts, 'default_prompt_name': None}
    return written

EN, ZH = 'Represent this sentence for searching relevant passages: ', '为这个句子生成表示以用于检索相关文章：'
NONE = ('', '')
# name, encoder, prompt of a stored and of a searched text, its files
FAMILIES = [
    ('BAAI/bge-small-en-v1.5', 'bert', ('', EN), files(32, 'cls', True, prompts={})),
    ('BAAI/bge-large-zh-v1.5', 'bert', ('', ZH), files(32, 'cls', True)),
    ('intfloat/e5-base-v2', 'bert', ('passage: ', 'query: '), files(32, 'mean', True)),
    ('intfloat/multilingual-e5-small', 'bert-xlmr-words', ('passage: ', 'query: '), files(32, 'mean', True)),
    ('intfloat/multilingual-e5-large', 'tiny-bge-m3', ('passage: ', 'query: '), files(64, 'mean', True)),
    ('moka-ai/m3e-base', 'bert', NONE, files(32, 'mean', False)),
    ('sensenova/piccolo-base-zh', 'bert', ('结果: ', '查询: '), files(32, 'mean', False)),
    ('sensenova/piccolo-large-zh-v2', 'bert', NONE, files(32, 'mean', False, dense=56)),
    ('infgrad/stella-base-zh', 'bert', ('结果: ', '查询: '), files(32, 'mean', True)),
    ('infgrad/stella-base-zh-v2', 'bert', NONE, files(32, 'mean', True)),
    ('infgrad/stella-mrl-large-zh-v3.5-1792d', 'bert', NONE, files(32, 'mean', False, dense=56)),
    ('thenlper/gte-base', 'bert', NONE, files(32, 'mean', True)),
    ('thenlper/gte-large-zh', 'bert', NONE, files(32, 'cls', True)),
    ('sentence-transformers/all-MiniLM-L6-v2', 'bert', NONE, files(32, 'mean', True, length=256)),
    ('shibing624/text2vec-base-chinese', 'bert', NONE, files(32, 'mean', False, length=128)),
    ('Snowflake/snowflake-arctic-embed-l-v2.0', 'tiny-bge-m3', ('', 'query: '), files(64, 'cls', True, prompts={'query': 'query: '}, newer=True)),
    ('Alibaba-NLP/gte-multilingual-base', 'gte-multilingual', NONE, files(32, 'cls', True, length=8192)),
    ('Alibaba-NLP/gte-base-en-v1.5', 'gte-en', NONE, files(32, 'cls', False, length=8192)),
]

def digits(values): return [float(f'{x:.7g}') for x in values]

def run(family):
    name, encoder, prompts, written = family
    tokenizer_folder, forward = encoders[encoder]
    tokenizer = Tokenizer.from_file(f'{tokenizer_folder}/tokenizer.json'); tokenizer.no_padding(); tokenizer.no_truncation()
    pooling, modules = written['1_Pooling/config.json'], [m['type'].rsplit('.')[-1] for m in written['modules.json']]
    dense = None
    if 'Dense' in modules:
        dense = randomize(torch.nn.Linear(32, 56), 31)
        folder = os.path.join(out, 'families', '2_Dense'); os.makedirs(folder, exist_ok=True)
        save_file({'linear.weight': dense.weight.detach().half(), 'linear.bias': dense.bias.detach().half()}, f'{folder}/model.safetensors')
    def embed(text):
        with torch.no_grad():
            hidden = forward(tokenizer.encode(text).ids)
            first = pooling.get('pooling_mode_cls_token') or pooling.get('pooling_mode') == 'cls'
            vector = hidden[0] if first else hidden.mean(0)
            if dense is not None: vector = dense(vector)
            if 'Normalize' in modules: vector = torch.nn.functional.normalize(vector, dim=0)
        return digits(vector.tolist())
    row = {'name': name, 'weights': encoder, 'tokenizer': os.path.basename(tokenizer_folder), 'files': written, 'documents': [embed(prompts[0] + t) for t in DOCUMENTS], 'queries': [embed(prompts[1] + t) for t in QUERIES]}
    if name == 'Alibaba-NLP/gte-multilingual-base':
        dropped = {tokenizer.token_to_id(t) for t in ('<s>', '</s>', '<pad>', '<unk>')}
        def terms(text):
            ids = tokenizer.encode(text).ids
            with torch.no_grad(): weights = torch.relu(lexical(forward(ids)))[:, 0].tolist()
            best = {}
            for i, w in zip(ids, weights):
                if w > 0 and i not in dropped: best[i] = max(w, best.get(i, 0))
            return {'ids': sorted(best), 'weights': digits(best[i] for i in sorted(best))}
        row['sparse'] = [terms(t) for t in DOCUMENTS]
    return row

def score(query, document):
    tokenizer = Tokenizer.from_file(f'{XLMR}/tokenizer.json'); tokenizer.no_padding(); tokenizer.no_truncation()
    with torch.no_grad(): return reranker(input_ids=torch.tensor([tokenizer.encode(query, document).ids])).logits.item()

pairs = [[q, d] for q in QUERIES for d in DOCUMENTS]
json.dump({'documents': DOCUMENTS, 'queries': QUERIES, 'families': [run(f) for f in FAMILIES],
           'reranker': {'name': 'Alibaba-NLP/gte-multilingual-reranker-base', 'weights': 'gte-reranker', 'tokenizer': os.path.basename(XLMR), 'pairs': pairs, 'logits': digits(score(*p) for p in pairs)}},
          open(os.path.join(out, 'families.json'), 'w'), ensure_ascii=False, separators=(',', ':'))
