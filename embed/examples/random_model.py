"""Writes a model of BGE-M3's size and layout with random weights: for speed and memory, not for vectors.

usage: random_model.py OUT_DIR TOKENIZER_JSON [--layers 24] [--hidden 1024] [--vocabulary 250002]
  TOKENIZER_JSON  any whose ids are below the vocabulary, such as that of tests/data/embedding-golden/tiny-bge-m3
needs: numpy
"""
import argparse, json, os, shutil, struct
import numpy as np

parser = argparse.ArgumentParser()
parser.add_argument('out'); parser.add_argument('tokenizer')
parser.add_argument('--layers', type=int, default=24)
parser.add_argument('--hidden', type=int, default=1024)
parser.add_argument('--vocabulary', type=int, default=250_002)
a = parser.parse_args()
hidden, inner, positions = a.hidden, 4 * a.hidden, 8194

tensors = {'embeddings.word_embeddings.weight': (a.vocabulary, hidden),
           'embeddings.position_embeddings.weight': (positions, hidden),
           'embeddings.token_type_embeddings.weight': (1, hidden)}
norms = ['embeddings.LayerNorm']
for i in range(a.layers):
    layer = f'encoder.layer.{i}.'
    for name, shape in [('attention.self.query', (hidden, hidden)), ('attention.self.key', (hidden, hidden)),
                        ('attention.self.value', (hidden, hidden)), ('attention.output.dense', (hidden, hidden)),
                        ('intermediate.dense', (inner, hidden)), ('output.dense', (hidden, inner))]:
        tensors[layer + name + '.weight'] = shape
        tensors[layer + name + '.bias'] = shape[:1]
    norms += [layer + 'attention.output.LayerNorm', layer + 'output.LayerNorm']
for norm in norms:
    tensors[norm + '.weight'] = tensors[norm + '.bias'] = (hidden,)

header, offset = {}, 0
for name, shape in tensors.items():
    size = 4 * int(np.prod(shape))
    header[name] = {'dtype': 'F32', 'shape': list(shape), 'data_offsets': [offset, offset + size]}
    offset += size
header = json.dumps(header).encode()
header += b' ' * (-(8 + len(header)) % 64)
os.makedirs(f'{a.out}/1_Pooling', exist_ok=True)
random = np.random.default_rng(1)
with open(f'{a.out}/model.safetensors', 'wb') as file:
    file.write(struct.pack('<Q', len(header)) + header)
    for name, shape in tensors.items():
        if name.endswith('LayerNorm.weight'):
            values = np.ones(shape, np.float32)
        else:
            values = random.standard_normal(shape, np.float32) * np.float32(0.03)
        values.tofile(file)
json.dump({'architectures': ['XLMRobertaModel'], 'model_type': 'xlm-roberta', 'vocab_size': a.vocabulary, 'hidden_size': hidden,
           'num_hidden_layers': a.layers, 'num_attention_heads': hidden // 64, 'intermediate_size': inner,
           'max_position_embeddings': positions, 'type_vocab_size': 1, 'layer_norm_eps': 1e-5, 'hidden_act': 'gelu',
           'pad_token_id': 1}, open(f'{a.out}/config.json', 'w'))
json.dump({'pooling_mode_cls_token': True}, open(f'{a.out}/1_Pooling/config.json', 'w'))
shutil.copy(a.tokenizer, f'{a.out}/tokenizer.json')
