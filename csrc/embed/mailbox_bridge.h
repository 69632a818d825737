#pragma once

#include <memory>

#include "embed/bridge.h"
#include "embed/mailbox.h"

namespace runtime::embed {

// A reference to a mailbox, for runtime._core.
BridgeMailbox BridgeTo(std::shared_ptr<Mailbox> mailbox);

}  // namespace runtime::embed
