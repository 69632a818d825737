#pragma once

#include <memory>
#include <vector>

#include "runtime/scheduler.h"
#include "scheduler/request.h"

namespace runtime {

// Builds a request, or throws InvalidRequest for what this model or this pool can never serve.
// Reads only constants of the allocator, so any thread may call it.
std::unique_ptr<Request> MakeRequest(const SchedulerConfig& config, BlockAllocator& allocator,
                                     RequestId id, std::vector<TokenId> prompt_ids,
                                     const RequestParams& params, SubmitOptions options);

}  // namespace runtime
