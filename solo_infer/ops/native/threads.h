// Tasks that the threads of OpenMP take one after another.

#ifndef SOLO_INFER_THREADS_H
#define SOLO_INFER_THREADS_H

#include <cstdint>

namespace {

// GOMP_parallel(function, data, threads, flags) of the OpenMP library of torch.
typedef void (*Parallel)(void (*)(void *), void *, unsigned, unsigned);

// Calls function(first, last, thread) for parts [first, last) of [0, total), with ``step`` items but the last one.
// Waits once, at the end: a thread that is not running delays no other one.
template <typename Function>
void run_in_threads(int64_t total, int64_t step, uint32_t threads, Parallel parallel, const Function &function) {
    struct Work {
        const Function &function;
        int64_t total, step, started_threads, next;
    };
    const auto run = [](void *data) {
        Work &work = *static_cast<Work *>(data);
        const int64_t thread = __atomic_fetch_add(&work.started_threads, 1, __ATOMIC_RELAXED);
        while (true) {
            const int64_t first = __atomic_fetch_add(&work.next, work.step, __ATOMIC_RELAXED);
            if (first >= work.total) return;
            const int64_t last = work.total - first < work.step ? work.total : first + work.step;
            work.function(first, last, thread);
        }
    };
    Work work{function, total, step, 0, 0};
    if (threads == 1) {
        run(&work);
    } else {
        parallel(run, &work, threads, 0);
    }
}

}  // namespace

#endif
