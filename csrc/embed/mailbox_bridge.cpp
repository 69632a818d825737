#include "embed/mailbox_bridge.h"

#include <string>
#include <utility>

#include "embed/errors.h"
#include "embed/fields.h"

namespace runtime::embed {
namespace {

Mailbox& Self(void* self) { return **static_cast<std::shared_ptr<Mailbox>*>(self); }

std::string ToString(const BridgeText& text) {
  return text.data == nullptr ? std::string() : std::string(text.data, text.size);
}

RequestMetrics ToMetrics(const BridgeMetrics& metrics) {
  return {metrics.queue_s,
          metrics.ttft_s,
          metrics.e2e_s,
          metrics.num_prompt_tokens,
          metrics.num_cached_tokens,
          metrics.num_output_tokens,
          metrics.num_preemptions};
}

Chunk ToChunk(const BridgeChunk& from) {
  Chunk chunk;
  chunk.index = from.index;
  chunk.text = ToString(from.text);
  chunk.token_ids.assign(from.token_ids, from.token_ids + from.num_tokens);
  for (std::size_t i = 0; i < from.num_logprobs; ++i) {
    const BridgeLogprobs& one = from.logprobs[i];
    chunk.logprobs.push_back(
        {{one.token_ids, one.token_ids + one.size}, {one.logprobs, one.logprobs + one.size}});
  }
  chunk.finish_reason = static_cast<FinishReason>(from.finish);
  chunk.stop_string = ToString(from.stop_string);
  chunk.stop_token_id = from.stop_token_id;
  if (from.metrics != nullptr) chunk.metrics = ToMetrics(*from.metrics);
  return chunk;
}

BridgeItemKind ToKind(Item::Kind kind) {
  switch (kind) {
    case Item::Kind::kSubmit:
      return kBridgeSubmit;
    case Item::Kind::kScore:
      return kBridgeScore;
    case Item::Kind::kAbort:
      return kBridgeAbort;
    case Item::Kind::kMore:
      break;
  }
  return kBridgeMore;
}

// Out of memory ends the process in these: there is nobody to tell.

void Release(void* self) noexcept { delete static_cast<std::shared_ptr<Mailbox>*>(self); }

int Wait(void* self, double timeout_s) noexcept {
  return Self(self).WaitForItems(std::chrono::duration<double>(timeout_s));
}

void Take(void* self, void* context, void (*each)(void*, const BridgeItem*)) noexcept {
  for (const Item& item : Self(self).TakeItems()) {
    const Fields fields(item);
    const BridgeItem view{ToKind(item.kind), item.id, fields.data(), fields.size()};
    each(context, &view);
  }
}

int WantsNews(void* self, std::int64_t id) noexcept { return Self(self).WantsNews(id); }

void Push(void* self, std::int64_t id, const BridgeChunk* chunk) noexcept {
  Self(self).Push(id, ToChunk(*chunk));
}

void End(void* self, std::int64_t id) noexcept { Self(self).End(id); }

void Fail(void* self, std::int64_t id, const BridgeError* error) noexcept {
  Self(self).End(id, ToException(*error));
}

void Close(void* self) noexcept { Self(self).Close(); }

}  // namespace

BridgeMailbox BridgeTo(std::shared_ptr<Mailbox> mailbox) {
  auto* self = new std::shared_ptr<Mailbox>(std::move(mailbox));
  return {self, &Release, &Wait, &Take, &WantsNews, &Push, &End, &Fail, &Close};
}

}  // namespace runtime::embed
