// What llama.cpp computes with a GGUF: llama_probe MODEL BACKENDS IDS LOGITS WORDS
// IDS: a line of ids to compute logits of (LOGITS gets them as fp32, row after row), then a line for each start of 64 greedy tokens,
// which are printed. WORDS: a text; its ids are printed last. Keys and values are kept in fp32 (llama.cpp's default is fp16).
// g++ -std=c++17 llama_probe.cpp -I llama.cpp/include -I llama.cpp/ggml/include -L LIBS -l:libllama.so -l:libggml.so -o llama_probe
#include <cstdio>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "llama.h"

static const int STEP = 512;

// Logits of the last token, or of every token into `out`.
static const float *run(llama_context *ctx, const std::vector<llama_token> &ids, int at, FILE *out, int n_vocab) {
    const float *last = nullptr;
    for (size_t start = 0; start < ids.size(); start += STEP) {
        int n = std::min<size_t>(STEP, ids.size() - start);
        llama_batch batch = llama_batch_init(n, 0, 1);
        batch.n_tokens = n;
        for (int i = 0; i < n; i++) {
            batch.token[i] = ids[start + i];
            batch.pos[i] = at + start + i;
            batch.n_seq_id[i] = 1;
            batch.seq_id[i][0] = 0;
            batch.logits[i] = out != nullptr || start + i + 1 == ids.size();
        }
        if (llama_decode(ctx, batch) != 0) { fprintf(stderr, "llama_decode failed\n"); exit(1); }
        for (int i = 0; i < n; i++)
            if (out) fwrite(llama_get_logits_ith(ctx, i), sizeof(float), n_vocab, out);
        last = llama_get_logits_ith(ctx, n - 1);
        llama_batch_free(batch);
    }
    return last;
}

int main(int argc, char **argv) {
    if (argc != 6) return 2;
    llama_log_set([](ggml_log_level level, const char *text, void *) { if (level >= GGML_LOG_LEVEL_ERROR) fputs(text, stderr); }, nullptr);
    ggml_backend_load_all_from_path(argv[2]);
    llama_model *model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return 1;
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 4096;
    params.n_batch = params.n_ubatch = STEP;
    params.n_threads = params.n_threads_batch = 1;
    params.type_k = params.type_v = GGML_TYPE_F32;
    params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_DISABLED;
    llama_context *ctx = llama_init_from_model(model, params);
    if (!ctx) return 1;
    const llama_vocab *vocab = llama_model_get_vocab(model);
    int V = llama_vocab_n_tokens(vocab);
    std::ifstream lines(argv[3]);
    std::string line;
    for (int number = 0; std::getline(lines, line); number++) {
        std::istringstream words(line);
        std::vector<llama_token> ids;
        for (llama_token id; words >> id;) ids.push_back(id);
        llama_memory_clear(llama_get_memory(ctx), true);
        FILE *out = number == 0 ? fopen(argv[4], "wb") : nullptr;
        const float *logits = run(ctx, ids, 0, out, V);
        if (out) { fclose(out); continue; }
        for (int k = 0; k < 64; k++) {
            llama_token best = 0;
            for (int v = 1; v < V; v++) if (logits[v] > logits[best]) best = v;
            printf("%d ", best);
            logits = run(ctx, {best}, ids.size() + k, nullptr, V);
        }
        printf("\n");
    }
    std::stringstream text;
    text << std::ifstream(argv[5]).rdbuf();
    std::vector<llama_token> found(text.str().size() + 8);
    int n = llama_tokenize(vocab, text.str().data(), text.str().size(), found.data(), found.size(), false, false);
    for (int i = 0; i < n; i++) printf("%d ", found[i]);
    printf("\n");
}
