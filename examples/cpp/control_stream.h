// One control stream: an observation goes out, its plan comes in, and no call of the robot's ever waits for the network.
//
// One observation is under way at a time. While it is, the robot keeps its images to itself: the next one sent is the
// newest there is, nothing old queues up anywhere, and `executed` always counts from the plan the service goes on from.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>

#include "client.h"

class ControlStream : private grpc::ClientBidiReactor<presage::v1::ControlRequest, presage::v1::ControlResponse> {
 public:
  // The stream ends by its deadline at the latest, `limit` from now; the session outlives it.
  ControlStream(Client& client, const presage::v1::ControlStart& start, std::chrono::milliseconds limit);
  ~ControlStream() { finish(); }

  // Sends an observation unless one is under way, or the stream is over; says whether it did. Returns at once.
  bool send(presage::v1::ControlObservation observation);
  // The newest reply, once: a plan, or why an observation got none.
  std::optional<presage::v1::ControlResponse> take();
  // Whether the other side has ended it.
  bool over();
  // Ends it, and says how it ended. Only the thread that sends may call it; a stream that is over answers at once.
  grpc::Status finish();

 private:
  void OnWriteDone(bool ok) override;
  void OnReadDone(bool ok) override;
  void OnDone(const grpc::Status& status) override;

  grpc::ClientContext context_;
  presage::v1::ControlRequest outgoing_;
  presage::v1::ControlResponse incoming_;

  std::mutex mutex_;  // for all below
  std::condition_variable done_;
  std::optional<presage::v1::ControlResponse> newest_;
  std::optional<grpc::Status> status_;
  bool writing_ = true;  // `start`
  bool awaiting_ = false, over_ = false, finishing_ = false;
};
