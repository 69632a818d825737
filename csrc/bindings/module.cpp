// Table of contents of runtime._core; each Bind function has a file of its own.
#include <pybind11/pybind11.h>

#include "bindings/bind.h"
#include "runtime/version.h"

PYBIND11_MODULE(_core, m, pybind11::mod_gil_not_used()) {
  m.doc() = "C++ core of the runtime: scheduler, KV cache bookkeeping, ranks and collectives.";
  m.attr("__version__") = runtime::Version();
  runtime::bindings::BindErrors();
  runtime::bindings::BindCommunicator(m);
  runtime::bindings::BindEmbedding(m);
  runtime::bindings::BindKvCache(m);
  runtime::bindings::BindLauncher(m);
  runtime::bindings::BindPeerBuffers(m);
  runtime::bindings::BindRequestParams(m);
  runtime::bindings::BindStepTime(m);
  runtime::bindings::BindRoofline(m);
  runtime::bindings::BindScheduler(m);
  runtime::bindings::BindSimulation(m);
  runtime::bindings::BindStepPlan(m);
}
