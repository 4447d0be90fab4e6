package awsutils

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// literal takes their meaning from the characters that are wildcards in filters.
var literal = strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`)

// DetachedENIs returns the ENIs that are attached to nothing and carry a tag with each of these values, ordered by id.
// An empty vpcID means any VPC.
func (e *EC2) DetachedENIs(ctx context.Context, vpcID string, tags map[string]string) ([]ENI, error) {
	filters := []types.Filter{{Name: aws.String("status"), Values: []string{string(types.NetworkInterfaceStatusAvailable)}}}
	if vpcID != "" {
		filters = append(filters, types.Filter{Name: aws.String("vpc-id"), Values: []string{vpcID}})
	}
	for _, key := range slices.Sorted(maps.Keys(tags)) {
		filters = append(filters, types.Filter{Name: aws.String("tag:" + key), Values: []string{literal.Replace(tags[key])}})
	}
	enis, err := e.describeFiltered(ctx, filters)
	if err != nil {
		return nil, fmt.Errorf("describe detached enis: %w", err)
	}
	return enis, nil
}

// InstanceStates returns the states (running, terminated …) of these instances. An instance that EC2 does not know is
// missing from the answer; it is not an error. Instances that a service of AWS manages are seen like all others.
func (e *EC2) InstanceStates(ctx context.Context, ids ...string) (map[string]string, error) {
	states := make(map[string]string, len(ids))
	for chunk := range slices.Chunk(ids, filterSize) {
		pages := ec2.NewDescribeInstancesPaginator(e.api, &ec2.DescribeInstancesInput{
			// By filter and not by id: one unknown id among the ids would fail the call for all of them.
			Filters:                 []types.Filter{{Name: aws.String("instance-id"), Values: chunk}},
			IncludeManagedResources: aws.Bool(true),
		})
		for pages.HasMorePages() {
			page, err := pages.NextPage(ctx)
			if err != nil {
				return nil, fmt.Errorf("describe instances: %w", err)
			}
			for _, r := range page.Reservations {
				for _, i := range r.Instances {
					if i.State != nil {
						states[aws.ToString(i.InstanceId)] = string(i.State.Name)
					}
				}
			}
		}
	}
	return states, nil
}
