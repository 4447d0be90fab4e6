package main

import (
	"context"
	"fmt"
	"time"

	"github.com/aws/aws-sdk-go-v2/config"

	"vpccni/pkg/awsutils"
	"vpccni/pkg/version"
)

const (
	// imdsTimeout bounds all reads of IMDS. It answers in milliseconds, or there is none.
	imdsTimeout = 5 * time.Second
	// attemptTimeout bounds one HTTP attempt.
	attemptTimeout = 5 * time.Second
)

// awsCloud is the real cloud. It reads nothing before it is asked.
type awsCloud struct {
	region string // from IMDS, once it has been read
}

// InstanceType asks IMDS, and notes the region that goes with the type.
func (a *awsCloud) InstanceType(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, imdsTimeout)
	defer cancel()
	id, err := awsutils.NewIMDS(awsutils.IMDSOptions{HTTPTimeout: time.Second}).Identity(ctx)
	if err != nil {
		return "", err
	}
	a.region = id.Region
	return id.InstanceType, nil
}

// Limits asks EC2, in the region that IMDS has told or else the SDK's configuration (AWS_REGION, the profile) names.
func (a *awsCloud) Limits(ctx context.Context, instanceType string) (awsutils.Limits, error) {
	region, err := a.findRegion(ctx)
	if err != nil {
		return awsutils.Limits{}, err
	}
	ec2, err := awsutils.NewEC2(ctx, awsutils.EC2Options{Region: region, Version: version.Version, HTTPTimeout: attemptTimeout})
	if err != nil {
		return awsutils.Limits{}, err
	}
	return ec2.InstanceTypeLimits(ctx, instanceType)
}

func (a *awsCloud) findRegion(ctx context.Context) (string, error) {
	if a.region != "" {
		return a.region, nil
	}
	cfg, err := config.LoadDefaultConfig(ctx)
	if err != nil {
		return "", fmt.Errorf("sdk configuration: %w", err)
	}
	if cfg.Region != "" {
		return cfg.Region, nil
	}
	if _, err := a.InstanceType(ctx); err != nil {
		return "", fmt.Errorf("no region to ask ec2 in: AWS_REGION is not set, and imds does not answer: %w", err)
	}
	return a.region, nil
}
