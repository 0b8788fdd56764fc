// fibers.cpp: see fibers.h.
#include "fibers.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstring>
#include <new>

#include "emulator.h"
#include "sanitizers.h"

extern "C" void freedive_emu_switch(void** save, void* load);

// Saves the registers a callee must keep on this stack, takes the other stack, and restores those of there.
#if defined(__x86_64__)
asm(R"(
.text
.globl freedive_emu_switch
.hidden freedive_emu_switch
.type freedive_emu_switch, @function
freedive_emu_switch:
  pushq %rbx
  pushq %rbp
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbp
  popq %rbx
  ret
.size freedive_emu_switch, . - freedive_emu_switch
)");
constexpr int RETURN = 6;   // where the address to return to lies, counted in words from the stack pointer
constexpr int FRAME = 8;    // words, with the one above the return address that keeps the stack aligned as after a call
#elif defined(__aarch64__)
asm(R"(
.text
.globl freedive_emu_switch
.hidden freedive_emu_switch
freedive_emu_switch:
  sub sp, sp, #160
  stp x19, x20, [sp]
  stp x21, x22, [sp, #16]
  stp x23, x24, [sp, #32]
  stp x25, x26, [sp, #48]
  stp x27, x28, [sp, #64]
  stp x29, x30, [sp, #80]
  stp d8, d9, [sp, #96]
  stp d10, d11, [sp, #112]
  stp d12, d13, [sp, #128]
  stp d14, d15, [sp, #144]
  mov x9, sp
  str x9, [x0]
  mov sp, x1
  ldp x19, x20, [sp]
  ldp x21, x22, [sp, #16]
  ldp x23, x24, [sp, #32]
  ldp x25, x26, [sp, #48]
  ldp x27, x28, [sp, #64]
  ldp x29, x30, [sp, #80]
  ldp d8, d9, [sp, #96]
  ldp d10, d11, [sp, #112]
  ldp d12, d13, [sp, #128]
  ldp d14, d15, [sp, #144]
  add sp, sp, #160
  ret
)");
constexpr int RETURN = 11;
constexpr int FRAME = 20;
#else
#error "the CUDA emulator switches stacks on x86-64 and arm64 only"
#endif

namespace emu {

Fiber host_fiber;
static Fiber* entered_from = nullptr;

Fiber* new_fiber() {
  constexpr size_t PAGE = 4096;
  auto* fiber = new Fiber;
  static size_t made = 0;
  fiber->colour = made++ % 61 * 448;  // equal offsets of all stacks would share a few sets of the first cache
  fiber->size = asan() ? 512 << 10 : 128 << 10;
  void* memory = mmap(nullptr, fiber->size + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) throw std::bad_alloc();
  mprotect(memory, PAGE, PROT_NONE);
  fiber->base = static_cast<char*>(memory) + PAGE;
  return fiber;
}

void prepare(Fiber* fiber, void (*entry)()) {
  unpoison(fiber->base, fiber->size);
  const uintptr_t top = (reinterpret_cast<uintptr_t>(fiber->base) + fiber->size - fiber->colour) & ~uintptr_t{63};
  auto** words = reinterpret_cast<void**>(top) - FRAME;
  for (int i = 0; i < FRAME; ++i) words[i] = nullptr;
  words[RETURN] = reinterpret_cast<void*>(entry);
  fiber->stack_pointer = words;
  fiber->asan = nullptr;
  fiber->used = true;
}

void forget(Fiber* fiber) {  // fresh pages have no history
  if (!fiber->used) return;
  fiber->used = false;
  mmap(fiber->base, fiber->size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
}

void switch_to(Fiber* from, Fiber* to, bool ends) {
  entered_from = from;
  if (asan()) __sanitizer_start_switch_fiber(ends ? nullptr : &from->asan, to->base, to->size);
  freedive_emu_switch(&from->stack_pointer, to->stack_pointer);
  if (asan()) __sanitizer_finish_switch_fiber(from->asan, nullptr, nullptr);
}

void switched() {
  // The first time, the sanitizer tells where the host's own stack lies: what a switch back to it must say.
  const void* base = nullptr;
  size_t size = 0;
  if (asan()) __sanitizer_finish_switch_fiber(nullptr, &base, &size);
  if (asan() && entered_from == &host_fiber)
    host_fiber.base = static_cast<char*>(const_cast<void*>(base)), host_fiber.size = size;
}

}  // namespace emu
