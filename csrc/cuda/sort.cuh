// sort.cuh: ids with their places, sorted on the device: equal ids keep the order of their places. For sums over the rows of one
// id in a fixed order.
#pragma once
#include "launch.cuh"

namespace freedive::cuda {

struct Sortable {
  int32_t key, place;
};

// Workspace for n ids; monotone in n.
size_t sort_bytes(int64_t n);

// Sorts ids[0..n), each below `limit`, and returns the list in `workspace`; n > 0.
const Sortable* sort_ids(fd_context* ctx, const char* op, const int32_t* ids, int64_t n, int64_t limit, void* workspace);

}  // namespace freedive::cuda
