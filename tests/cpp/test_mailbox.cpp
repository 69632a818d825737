#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "embed/callbacks.h"
#include "embed/mailbox.h"

namespace runtime::embed {
namespace {

using std::chrono::milliseconds;

Chunk Text(std::string text, std::int32_t index = 0) {
  Chunk chunk;
  chunk.index = index;
  chunk.token_ids.assign(text.begin(), text.end());
  chunk.text = std::move(text);
  return chunk;
}

Chunk Last(std::string text) {
  Chunk chunk = Text(std::move(text));
  chunk.finish_reason = FinishReason::kStop;
  chunk.metrics = RequestMetrics{};
  return chunk;
}

std::string TextOf(const Prompt& prompt) { return std::get<std::string>(prompt); }

// Everything until the end.
std::string Read(Mailbox& mailbox, RequestId id) {
  std::string text;
  for (Chunk chunk; mailbox.Next(id, chunk, {}) == Poll::kChunk;) text += chunk.text;
  return text;
}

// Answers each request with its prompt, letter by letter, until the mailbox is closed.
class EchoEngine {
 public:
  explicit EchoEngine(Mailbox& mailbox) : mailbox_(mailbox), thread_([this] { Run(); }) {}
  ~EchoEngine() {
    mailbox_.Close();
    thread_.join();
  }

 private:
  void Run() {
    while (mailbox_.WaitForItems(milliseconds(100))) {
      for (const Item& item : mailbox_.TakeItems()) {
        if (item.kind != Item::Kind::kSubmit) continue;
        for (const char letter : TextOf(item.request.prompt)) {
          mailbox_.Push(item.id, Text({letter}));
        }
        mailbox_.End(item.id);
      }
    }
  }

  Mailbox& mailbox_;
  std::thread thread_;
};

class MailboxTest : public testing::Test {
 protected:
  RequestId Submit(std::string prompt = "hello", Callbacks callbacks = {}) {
    return mailbox_->Submit({.prompt = std::move(prompt)}, std::move(callbacks));
  }

  std::shared_ptr<Mailbox> mailbox_ = std::make_shared<Mailbox>();
  Chunk chunk_;
};

TEST_F(MailboxTest, ARequestReachesTheEngine) {
  const RequestId id = Submit("12+35=");
  EXPECT_TRUE(mailbox_->WaitForItems(milliseconds(0)));
  const auto items = mailbox_->TakeItems();
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].id, id);
  EXPECT_EQ(TextOf(items[0].request.prompt), "12+35=");
  EXPECT_TRUE(mailbox_->TakeItems().empty());
}

TEST_F(MailboxTest, ChunksComeInOrderThenTheEnd) {
  const RequestId id = Submit();
  mailbox_->Push(id, Text("a"));
  ASSERT_EQ(mailbox_->TryNext(id, chunk_), Poll::kChunk);
  EXPECT_EQ(chunk_.text, "a");
  EXPECT_EQ(mailbox_->TryNext(id, chunk_), Poll::kNothingYet);
  mailbox_->Push(id, Last("b"));
  mailbox_->End(id);
  ASSERT_EQ(mailbox_->TryNext(id, chunk_), Poll::kChunk);
  EXPECT_EQ(chunk_.text, "b");
  EXPECT_EQ(chunk_.finish_reason, FinishReason::kStop);
  EXPECT_EQ(mailbox_->TryNext(id, chunk_), Poll::kEnded);
}

TEST_F(MailboxTest, AStreamThatWasReadToItsEndIsForgotten) {
  const RequestId id = Submit();
  mailbox_->End(id);
  EXPECT_EQ(mailbox_->TryNext(id, chunk_), Poll::kEnded);
  EXPECT_THROW(mailbox_->TryNext(id, chunk_), InvalidArgument);
  EXPECT_THROW(mailbox_->Next(id + 1, chunk_, {}), InvalidArgument);
}

TEST_F(MailboxTest, UnreadChunksAreJoinedByCompletion) {
  const RequestId id = Submit();
  mailbox_->Push(id, Text("a", 0));
  mailbox_->Push(id, Text("x", 1));
  mailbox_->Push(id, Text("b", 0));
  mailbox_->Push(id, Last("c"));
  ASSERT_EQ(mailbox_->TryNext(id, chunk_), Poll::kChunk);
  EXPECT_EQ(chunk_.text, "abc");
  EXPECT_EQ(chunk_.token_ids.size(), 3u);
  EXPECT_EQ(chunk_.finish_reason, FinishReason::kStop);
  EXPECT_TRUE(chunk_.metrics);
  ASSERT_EQ(mailbox_->TryNext(id, chunk_), Poll::kChunk);
  EXPECT_EQ(chunk_.text, "x");
  EXPECT_EQ(mailbox_->TryNext(id, chunk_), Poll::kNothingYet);
}

TEST_F(MailboxTest, NewsMayBeHeldBackUntilTheReaderComes) {
  const RequestId id = Submit();
  mailbox_->TakeItems();
  EXPECT_TRUE(mailbox_->WantsNews(id));
  mailbox_->Push(id, Text("a"));
  EXPECT_EQ(mailbox_->TryNext(id, chunk_), Poll::kChunk);
  EXPECT_TRUE(mailbox_->TakeItems().empty());  // nothing was held back
  mailbox_->Push(id, Text("b"));
  EXPECT_FALSE(mailbox_->WantsNews(id));
  EXPECT_EQ(mailbox_->TryNext(id, chunk_), Poll::kChunk);
  const std::vector<Item> items = mailbox_->TakeItems();
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].kind, Item::Kind::kMore);
  EXPECT_EQ(items[0].id, id);
  EXPECT_TRUE(mailbox_->WantsNews(id));
  mailbox_->Push(id, Text("c"));
  EXPECT_FALSE(mailbox_->WantsNews(id));
  mailbox_->Push(id, Last("d"));
  mailbox_->End(id);
  EXPECT_FALSE(mailbox_->WantsNews(id));
  EXPECT_EQ(Read(*mailbox_, id), "cd");
  EXPECT_TRUE(mailbox_->TakeItems().empty());  // it has ended
  EXPECT_FALSE(mailbox_->WantsNews(id));
}

TEST_F(MailboxTest, WhatIsHeldBackFromCallbacksIsAskedForToo) {
  const RequestId id = Submit("hello", {[](RequestId, const Chunk&) {}, {}});
  mailbox_->TakeItems();
  mailbox_->Push(id, Text("a"));
  EXPECT_FALSE(mailbox_->WantsNews(id));
  EXPECT_EQ(mailbox_->WaitForNews()->chunks.at(0).text, "a");
  EXPECT_EQ(mailbox_->TakeItems().at(0).kind, Item::Kind::kMore);
}

TEST_F(MailboxTest, AnErrorComesAfterWhatWasThereBefore) {
  const RequestId id = Submit();
  mailbox_->Push(id, Text("a"));
  mailbox_->End(id, std::make_exception_ptr(EngineDead("a step failed")));
  mailbox_->Push(id, Text("too late"));
  ASSERT_EQ(mailbox_->Next(id, chunk_, {}), Poll::kChunk);
  EXPECT_EQ(chunk_.text, "a");
  EXPECT_THROW(mailbox_->Next(id, chunk_, {}), EngineDead);
  EXPECT_THROW(mailbox_->Next(id, chunk_, {}), InvalidArgument);  // forgotten
}

TEST_F(MailboxTest, AWaitEndsWithItsDeadline) {
  const RequestId id = Submit();
  EXPECT_EQ(mailbox_->Next(id, chunk_, Clock::now() + milliseconds(1)), Poll::kNothingYet);
  mailbox_->Push(id, Text("a"));
  EXPECT_EQ(mailbox_->Next(id, chunk_, Clock::now()), Poll::kChunk);
}

TEST_F(MailboxTest, WhoMayNotWaitIsToldSo) {
  const RequestId id = Submit();
  const auto refuse = [] { throw InvalidArgument("holds the GIL"); };
  EXPECT_THROW(mailbox_->Next(id, chunk_, {}, refuse), InvalidArgument);
  EXPECT_THROW(mailbox_->Drain({}, refuse), InvalidArgument);
  mailbox_->Push(id, Text("a"));
  EXPECT_EQ(mailbox_->Next(id, chunk_, {}, refuse), Poll::kChunk);  // no wait
}

TEST_F(MailboxTest, AbortReachesTheEngineWhileTheRequestRuns) {
  const RequestId id = Submit();
  mailbox_->TakeItems();
  mailbox_->Abort(id);
  const auto items = mailbox_->TakeItems();
  ASSERT_EQ(items.size(), 1u);
  EXPECT_EQ(items[0].kind, Item::Kind::kAbort);
  mailbox_->End(id);
  mailbox_->Abort(id);
  mailbox_->Abort(id + 1);
  EXPECT_TRUE(mailbox_->TakeItems().empty());
}

TEST_F(MailboxTest, AReleasedRequestIsAbortedAndForgotten) {
  const RequestId id = Submit();
  mailbox_->TakeItems();
  std::thread reader([&] {
    Chunk chunk;
    EXPECT_THROW(mailbox_->Next(id, chunk, {}), Error);  // released, or gone already
  });
  mailbox_->Release(id);
  reader.join();
  mailbox_->Push(id, Text("nobody"));
  mailbox_->End(id);
  mailbox_->Release(id);
  EXPECT_EQ(mailbox_->TakeItems().size(), 1u);
  EXPECT_THROW(mailbox_->TryNext(id, chunk_), InvalidArgument);
  mailbox_->Drain({});  // nothing is waited for
}

TEST_F(MailboxTest, DrainRefusesAndWaits) {
  const RequestId id = Submit();
  EXPECT_THROW(mailbox_->Drain(Clock::now() + milliseconds(1)), DeadlineExceeded);
  EXPECT_THROW(Submit(), RequestAborted);
  EXPECT_THROW(mailbox_->Score("a", "b"), RequestAborted);
  std::thread engine([&] {
    mailbox_->Push(id, Text("a"));
    mailbox_->End(id);
  });
  mailbox_->Drain({});
  engine.join();
  EXPECT_EQ(Read(*mailbox_, id), "a");  // what came is still there
}

TEST_F(MailboxTest, CloseEndsStreamsAndWaits) {
  const RequestId id = Submit();
  std::thread engine([&] {
    while (mailbox_->WaitForItems(std::chrono::hours(1))) mailbox_->TakeItems();
  });
  std::thread reader([&] {
    Chunk chunk;
    EXPECT_THROW(mailbox_->Next(id, chunk, {}), RequestAborted);
  });
  mailbox_->Close();
  engine.join();
  reader.join();
  EXPECT_THROW(Submit(), RequestAborted);
}

TEST_F(MailboxTest, SixteenThreadsGetTheirOwnAnswers) {
  const EchoEngine engine(*mailbox_);
  std::vector<std::thread> threads;
  for (int t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      for (int i = 0; i < 50; ++i) {
        const std::string prompt = "thread " + std::to_string(t) + " call " + std::to_string(i);
        const RequestId id = Submit(prompt);
        if (i % 7 == 0) {
          mailbox_->Release(id);
        } else {
          EXPECT_EQ(Read(*mailbox_, id), prompt);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  mailbox_->Drain({});
}

// What callbacks were told, by request.
struct Told {
  std::map<RequestId, std::string> text;
  std::map<RequestId, int> ends;
  std::map<RequestId, std::exception_ptr> errors;
  std::string thread;

  Callbacks callbacks() {
    return {[this](RequestId id, const Chunk& chunk) {
              char name[16];
              pthread_getname_np(pthread_self(), name, sizeof(name));
              thread = name;
              text[id] += chunk.text;
            },
            [this](RequestId id, std::exception_ptr error) {
              ++ends[id];
              errors[id] = error;
            }};
  }
};

TEST_F(MailboxTest, CallbacksGetTheChunksInANamedThread) {
  Told told;
  RequestId ids[3];
  {
    const CallbackThread thread(mailbox_, nullptr);
    const EchoEngine engine(*mailbox_);
    for (RequestId& id : ids) id = Submit("hello", told.callbacks());
    EXPECT_THROW(mailbox_->TryNext(ids[0], chunk_), InvalidArgument);  // they are not read
    mailbox_->Drain({});
  }
  for (const RequestId id : ids) {
    EXPECT_EQ(told.text[id], "hello");
    EXPECT_EQ(told.ends[id], 1);
    EXPECT_EQ(told.errors[id], nullptr);
  }
  EXPECT_EQ(told.thread, "runtime-calls");
}

TEST_F(MailboxTest, CallbacksAreToldWhenTheMailboxCloses) {
  Told told;
  RequestId id = 0;
  {
    const CallbackThread thread(mailbox_, nullptr);
    id = Submit("hello", told.callbacks());
    mailbox_->Close();
  }
  EXPECT_EQ(told.ends[id], 1);
  EXPECT_THROW(std::rethrow_exception(told.errors[id]), RequestAborted);
}

TEST_F(MailboxTest, ACallbackThatThrowsIsReportedAndEndsItsRequestAlone) {
  std::vector<std::string> reports;
  std::atomic<int> num_calls = 0;
  Told told;
  RequestId wrong = 0, right = 0;
  {
    const CallbackThread thread(mailbox_, [&](RequestId id, std::exception_ptr error) {
      try {
        std::rethrow_exception(error);
      } catch (const std::exception& e) {
        reports.push_back(std::to_string(id) + ": " + e.what());
      }
    });
    wrong = Submit("wrong", {[&](RequestId, const Chunk&) {
                               ++num_calls;
                               throw std::runtime_error("the disk is full");
                             },
                             [&](RequestId, std::exception_ptr) { ++num_calls; }});
    right = Submit("right", told.callbacks());
    mailbox_->TakeItems();
    mailbox_->Push(wrong, Text("a"));
    ASSERT_TRUE(mailbox_->WaitForItems(std::chrono::seconds(60)));
    const auto items = mailbox_->TakeItems();
    ASSERT_EQ(items.size(), 1u);
    EXPECT_EQ(items[0].kind, Item::Kind::kAbort);
    EXPECT_EQ(items[0].id, wrong);
    mailbox_->Push(wrong, Text("b"));
    mailbox_->End(wrong);
    mailbox_->Push(right, Text("right"));
    mailbox_->End(right);
    mailbox_->Close();
  }
  EXPECT_EQ(reports, std::vector{std::to_string(wrong) + ": the disk is full"});
  EXPECT_EQ(num_calls, 1);
  EXPECT_EQ(told.text[right], "right");
  EXPECT_EQ(told.ends[right], 1);
}

}  // namespace
}  // namespace runtime::embed
