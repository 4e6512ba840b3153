// Sets the order in which the threads of a block take turns, and the device's architecture, for tests.
#include "cuda_runtime.h"

extern "C" void set_fovblur_thread_order(int order) { fovblur_thread_order = order; }
extern "C" void set_fovblur_architecture(int architecture) { fovblur_architecture = architecture; }
