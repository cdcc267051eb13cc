// Calls to a Presage service, each with a deadline. A failed one is a CallFailed that says what the service said.
#pragma once

#include <chrono>
#include <memory>
#include <stdexcept>
#include <string>

#include <grpcpp/grpcpp.h>

#include "presage/v1/goals.grpc.pb.h"
#include "presage/v1/models.grpc.pb.h"
#include "presage/v1/planning.grpc.pb.h"
#include "presage/v1/sessions.grpc.pb.h"

// `reason` is the service's name for what went wrong ("IMAGE_SIZE"); gRPC's own failures have their code's number.
struct CallFailed : std::runtime_error {
  CallFailed(const std::string& call, const grpc::Status& status);
  grpc::StatusCode code;
  std::string reason;
};

// Code, message, and the reason, field, rule and value out of the rich error details.
std::string describe(const grpc::Status& status);
std::string reason_of(const grpc::Status& status);

class Client {
 public:
  // `ca_file`: PEM of the authority to trust; empty speaks without TLS. `api_key`: empty sends none.
  Client(const std::string& address, const std::string& ca_file, std::string api_key);

  void wait_ready(std::chrono::seconds limit);
  presage::v1::Model model();
  std::string create_goal(const std::string& image_file_bytes);
  std::string create_session(const std::string& goal_id);
  void delete_session(const std::string& session_id);
  presage::v1::Plan plan(const presage::v1::PlanRequest& request, std::chrono::milliseconds limit);

  // Gives a call its deadline and its key.
  void prepare(grpc::ClientContext& context, std::chrono::milliseconds limit) const;
  presage::v1::Planning::Stub& planning() { return *planning_; }

  // The error of a call that failed; names the proxy of the environment where one is in between.
  CallFailed failed(const std::string& call, const grpc::Status& status) const;

 private:
  std::string api_key_;
  std::string proxy_;  // empty where the service is reached directly, as on this machine itself
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<presage::v1::Models::Stub> models_;
  std::unique_ptr<presage::v1::Goals::Stub> goals_;
  std::unique_ptr<presage::v1::Sessions::Stub> sessions_;
  std::unique_ptr<presage::v1::Planning::Stub> planning_;
};
