#include "machine.h"

#include <memory>
#include <string>
#include <vector>

#include "fiber.h"

namespace zf::ptx_machine {

Thread thread;
Block block;
char* shared;
uint64_t shared_bytes;

namespace {

using zf::emulator::Fiber;

constexpr uint32_t kWarp = 32, kMostThreads = 1024;

// Where a thread is: about to run, waiting for its block or for its warp, or at its end.
enum State { kRuns, kInBlock, kInWarp, kEnded };
// What the lanes of a warp do together; all of them must agree.
enum Together { kNothing, kLoadMatrices, kLoadTransposed, kBFloat16, kFloat16, kTf32, kExchange };

struct Lane {
    Fiber fiber;
    State state;
    Together together;
    int count;           // of matrices
    uint64_t address;    // of a matrix's row
    uint32_t given[10];  // words of a, b and c; value, mask
    uint32_t words[4];
    float sums[4];
};

std::unique_ptr<Lane[]> lanes;
Fiber scheduler;
const Registered* running;
const char* parameters_of_run;
std::string text;
bool faulted;

[[noreturn]] void abandon(std::string what) {
    const auto number = [](uint64_t v) { return std::to_string(v); };
    text = std::move(what) + " in " + running->symbol + ", block (" + number(block.x) + ", " + number(block.y) + ", " +
           number(block.z) + "), thread " + number(thread.x);
    faulted = true;
    lanes[thread.x].fiber.switch_to(scheduler, true);
    __builtin_unreachable();
}

void enter() {
    Lane& own = lanes[thread.x];
    own.fiber.arrived();
    running->kernel(parameters_of_run);
    own.state = kEnded;
    own.fiber.switch_to(scheduler, true);
}

void wait(State state) {
    const uint32_t x = thread.x;
    lanes[x].state = state;
    lanes[x].fiber.switch_to(scheduler);
    thread.x = x;
}

// Row `row`, column `column` of the 8 x 8 matrix `index` of 16-bit elements.
uint32_t element(const Lane* warp, int index, int row, int column) {
    return load<uint16_t>(shared_memory(warp[index * 8 + row].address, 16) + 2 * column);
}

void load_matrices_of(Lane* warp) {
    for (uint32_t lane = 0; lane < kWarp; ++lane) {
        const int g = lane / 4, q = lane % 4;
        for (int i = 0; i < warp[lane].count; ++i) {
            const bool transposed = warp[lane].together == kLoadTransposed;
            const uint32_t low = transposed ? element(warp, i, 2 * q, g) : element(warp, i, g, 2 * q);
            const uint32_t high = transposed ? element(warp, i, 2 * q + 1, g) : element(warp, i, g, 2 * q + 1);
            warp[lane].words[i] = low | high << 16;
        }
    }
}

// Element (row, k) of A and (k, column) of B in float, from the lanes that hold them (csrc/cuda/ptx.cuh).
float operand(Together kind, uint32_t word, int half) {
    if (kind == kTf32) return float_of(word & ~0x1fffu);  // the unit does not read the lower bits
    const uint16_t bits = static_cast<uint16_t>(half ? word >> 16 : word);
    return kind == kBFloat16 ? from_bfloat16(bits) : from_float16(bits);
}

void multiply_of(Lane* warp, Together kind) {
    const int depth = kind == kTf32 ? 8 : 16, pair = kind == kTf32 ? 1 : 2;
    float a[16][16], b[8][16];  // b by columns
    for (int row = 0; row < 16; ++row)
        for (int k = 0; k < depth; ++k) {
            const int q = k / pair % 4, far = k / (4 * pair);
            a[row][k] = operand(kind, warp[row % 8 * 4 + q].given[far * 2 + row / 8], k % pair);
        }
    for (int column = 0; column < 8; ++column)
        for (int k = 0; k < depth; ++k)
            b[column][k] = operand(kind, warp[column * 4 + k / pair % 4].given[4 + k / (4 * pair)], k % pair);
    for (uint32_t lane = 0; lane < kWarp; ++lane)
        for (int e = 0; e < 4; ++e) {
            const int row = lane / 4 + e / 2 * 8, column = lane % 4 * 2 + e % 2;
            float sum = float_of(warp[lane].given[6 + e]);
            for (int k = 0; k < depth; ++k) sum += a[row][k] * b[column][k];
            warp[lane].sums[e] = sum;
        }
}

// All 32 lanes have come.
void together_of(Lane* warp) {
    for (uint32_t lane = 1; lane < kWarp; ++lane)
        if (warp[lane].together != warp[0].together || warp[lane].count != warp[0].count)
            abandon("the lanes of a warp are at different instructions");
    switch (warp[0].together) {
        case kLoadMatrices:
        case kLoadTransposed:
            return load_matrices_of(warp);
        case kExchange:
            for (uint32_t lane = 0; lane < kWarp; ++lane) {
                if (warp[lane].given[2] != 31 || warp[lane].given[3] != 0xffffffffu)
                    abandon("a shuffle that is not among all lanes of a warp");
                warp[lane].words[0] = warp[lane ^ (warp[lane].given[1] & 31)].given[0];
            }
            return;
        default:
            return multiply_of(warp, warp[0].together);
    }
}

Lane& join(Together together, int count) {
    Lane& own = lanes[thread.x];
    own.together = together, own.count = count;
    return own;
}

const float* mma(Together kind, const Words4& a, const Words2& b, const Words4& c) {
    Lane& own = join(kind, 0);
    std::memcpy(own.given, a.word, sizeof a);
    std::memcpy(own.given + 4, b.word, sizeof b);
    std::memcpy(own.given + 6, c.word, sizeof c);
    wait(kInWarp);
    return own.sums;
}

// Lets the warps go on whose lanes have all come; true when one did.
bool release_warps() {
    bool any = false;
    for (uint32_t first = 0; first < block.threads; first += kWarp) {
        uint32_t waiting = 0;
        for (uint32_t x = first; x < first + kWarp && x < block.threads; ++x) waiting += lanes[x].state == kInWarp;
        if (waiting != kWarp) continue;
        thread.x = first;
        together_of(&lanes[first]);
        for (uint32_t x = first; x < first + kWarp; ++x) lanes[x].state = kRuns;
        any = true;
    }
    return any;
}

bool release_block() {
    bool any = false;
    for (uint32_t x = 0; x < block.threads; ++x) {
        if (lanes[x].state != kInBlock && lanes[x].state != kEnded) return false;
        any |= lanes[x].state == kInBlock;
    }
    for (uint32_t x = 0; x < block.threads; ++x)
        if (lanes[x].state == kInBlock) lanes[x].state = kRuns;
    return any;
}

// Runs one block from a fiber that faults can leave.
void run_block() {
    std::memset(shared, 0xff, shared_bytes);  // NaN
    for (uint32_t x = 0; x < block.threads; ++x) {
        lanes[x].state = kRuns;
        lanes[x].fiber.start(enter);
    }
    for (bool going = true; going && !faulted;) {
        for (uint32_t x = 0; x < block.threads && !faulted; ++x) {
            if (lanes[x].state != kRuns) continue;
            thread.x = x;
            scheduler.switch_to(lanes[x].fiber);
        }
        going = !faulted && (release_warps() || release_block());
    }
}

}  // namespace

void fault(const char* what, uint64_t address, uint64_t bytes) {
    abandon(std::string(what) + " (" + std::to_string(bytes) + " bytes at " + std::to_string(address) + ")");
}

void wait_for_block() { wait(kInBlock); }

const uint32_t* load_matrices(uint64_t row, int count, bool transposed) {
    Lane& own = join(transposed ? kLoadTransposed : kLoadMatrices, count);
    own.address = row;
    wait(kInWarp);
    return own.words;
}
const float* mma_bfloat16(Words4 a, Words2 b, Words4 c) { return mma(kBFloat16, a, b, c); }
const float* mma_float16(Words4 a, Words2 b, Words4 c) { return mma(kFloat16, a, b, c); }
const float* mma_tf32(Words4 a, Words2 b, Words4 c) { return mma(kTf32, a, b, c); }

uint32_t exchanged(uint32_t value, uint32_t lane_mask, uint32_t clamp, uint32_t members) {
    Lane& own = join(kExchange, 0);
    own.given[0] = value, own.given[1] = lane_mask, own.given[2] = clamp, own.given[3] = members;
    wait(kInWarp);
    return own.words[0];
}

const char* fault_text() { return text.c_str(); }

bool run(const Registered& kernel, const char* parameters, const uint32_t (&blocks)[3], uint32_t threads,
         uint64_t bytes) {
    if (!lanes) lanes = std::make_unique<Lane[]>(kMostThreads);
    std::vector<char> memory(bytes + 128);
    shared = memory.data() + (128 - reinterpret_cast<uint64_t>(memory.data()) % 128) % 128;
    shared_bytes = bytes;
    running = &kernel, parameters_of_run = parameters, faulted = false;
    for (uint32_t z = 0; z < blocks[2]; ++z)
        for (uint32_t y = 0; y < blocks[1]; ++y)
            for (uint32_t x = 0; x < blocks[0]; ++x) {
                block = {threads, x, y, z, blocks[0], blocks[1]};
                run_block();
                for (uint32_t t = 0; t < threads && !faulted; ++t)
                    if (lanes[t].state != kEnded) {
                        text = std::string("threads wait for each other in ") + kernel.symbol + ", thread " +
                               std::to_string(t) + " among them";
                        faulted = true;
                    }
                if (faulted) return false;
            }
    return true;
}

}  // namespace zf::ptx_machine
