package rpcserver

import (
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// errorDomain says whose reasons the details of an error carry.
const errorDomain = "vpc-cni"

// failure is a gRPC error with its reason as a detail for programs. The text is what clients that know no details read,
// and for some of them it is the contract.
func failure(code codes.Code, reason, text string) error {
	s := status.New(code, text)
	detailed, err := s.WithDetails(&errdetails.ErrorInfo{Reason: reason, Domain: errorDomain})
	if err != nil {
		return s.Err()
	}
	return detailed.Err()
}
