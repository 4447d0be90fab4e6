#!/bin/bash
# Drives an EC2 endpoint with the AWS CLI through the life of an ENI and prints one line per check.
# Exits with 1 if any check fails.
#
# Needs: EC2_ENDPOINT, AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_SESSION_TOKEN (if the key has one),
#        AWS_DEFAULT_REGION, INSTANCE_ID (running, with room for one more ENI), SUBNET_ID (of its zone).
# May use: AWS_CLI (the binary), WAIT_SECONDS (how long an attachment may take, default 60).
set -uo pipefail

: "${EC2_ENDPOINT:?}" "${AWS_ACCESS_KEY_ID:?}" "${AWS_SECRET_ACCESS_KEY:?}" "${AWS_DEFAULT_REGION:?}"
: "${INSTANCE_ID:?}" "${SUBNET_ID:?}"
aws_cli=${AWS_CLI:-/usr/bin/aws}
wait_seconds=${WAIT_SECONDS:-60}

# Nothing but the environment above may decide what the CLI talks to.
export AWS_CONFIG_FILE=/dev/null AWS_SHARED_CREDENTIALS_FILE=/dev/null AWS_EC2_METADATA_DISABLED=true
export AWS_PAGER="" AWS_MAX_ATTEMPTS=1 AWS_DEFAULT_OUTPUT=text

errors=$(mktemp)
answers=$(mktemp -d)
run_tag=awscli-check-$$
failed=0
made=()

# ec2 ARGS...: one call; what it says on stderr goes to $errors.
ec2() {
	"$aws_cli" ec2 --endpoint-url "$EC2_ENDPOINT" --cli-read-timeout 30 --cli-connect-timeout 5 "$@" 2>"$errors"
}

delete_made() {
	local id
	for id in "${made[@]}"; do
		ec2 delete-network-interface --network-interface-id "$id" >/dev/null &
	done
	wait
}

# What a failed check leaves behind goes as well.
cleanup() {
	delete_made
	rm -rf "$errors" "$answers"
}
trap cleanup EXIT

# check NAME GOT WANT
check() {
	if [[ $2 == "$3" ]]; then
		printf 'ok    %s\n' "$1"
		return
	fi
	failed=1
	printf 'FAIL  %s: got %q, want %q\n' "$1" "$2" "$3"
	sed 's/^/      /' "$errors"
}

# refused NAME CODE ARGS...: the call must fail as the CLI fails on an error of the service: exit status 254 and the
# code in the message.
refused() {
	local name=$1 code=$2 status
	shift 2
	ec2 "$@" >/dev/null
	status=$?
	if grep -q "An error occurred ($code)" "$errors"; then
		check "$name: $code" "exit $status" "exit 254"
	else
		check "$name" "$(tr -d '\n' <"$errors") (exit $status)" "$code"
	fi
}

# until_eni ID QUERY WANT: describes the ENI until the query gives what is wanted; prints what it gave last.
until_eni() {
	local got deadline=$((SECONDS + wait_seconds))
	while got=$(ec2 describe-network-interfaces --network-interface-ids "$1" --query "NetworkInterfaces[0].$2"); do
		[[ $got != "$3" ]] && ((SECONDS < deadline)) || break
		sleep 0.5
	done
	echo "$got"
}

# spread puts a list into one sorted line.
spread() { tr '\t' '\n' | sort | tr '\n' ' '; }

got=$(ec2 describe-instances --instance-ids "$INSTANCE_ID" --query 'Reservations[0].Instances[0].[InstanceId,State.Name]')
check "describe-instances" "$got" "$INSTANCE_ID	running"
got=$(ec2 describe-subnets --subnet-ids "$SUBNET_ID" --query 'Subnets[0].[SubnetId,State]')
check "describe-subnets" "$got" "$SUBNET_ID	available"

create=(create-network-interface --subnet-id "$SUBNET_ID" --description "$run_tag"
	--tag-specifications "ResourceType=network-interface,Tags=[{Key=run,Value=$run_tag},{Key=colour,Value=blue}]")
eni=$(ec2 "${create[@]}" --secondary-private-ip-address-count 2 --query NetworkInterface.NetworkInterfaceId)
check "create-network-interface" "${eni:0:4}" "eni-"
[[ $eni == eni-* ]] || exit 1
made+=("$eni")
got=$(ec2 describe-network-interfaces --network-interface-ids "$eni" \
	--query 'NetworkInterfaces[0].[Status,length(PrivateIpAddresses),length(TagSet),Description]')
check "  it has two secondary addresses and its tags" "$got" "available	3	2	$run_tag"

first_free=$(ec2 describe-network-interfaces --filters "Name=attachment.instance-id,Values=$INSTANCE_ID" \
	--query 'sort(NetworkInterfaces[].Attachment.DeviceIndex)' | tr '\t' '\n' |
	awk 'BEGIN { n = 0 } $1 == n { n++ } END { print n }')
attachment=$(ec2 attach-network-interface --network-interface-id "$eni" --instance-id "$INSTANCE_ID" \
	--device-index "$first_free" --query AttachmentId)
check "attach-network-interface at device $first_free" "${attachment:0:11}" "eni-attach-"
check "  it arrives" "$(until_eni "$eni" Attachment.Status attached)" "attached"

address=$(ec2 assign-private-ip-addresses --network-interface-id "$eni" --secondary-private-ip-address-count 1 \
	--query 'AssignedPrivateIpAddresses[0].PrivateIpAddress')
got=$(ec2 describe-network-interfaces --filters "Name=addresses.private-ip-address,Values=$address" \
	"Name=subnet-id,Values=$SUBNET_ID" --query 'NetworkInterfaces[].NetworkInterfaceId')
check "assign-private-ip-addresses, found by the address" "$got" "$eni"
ec2 unassign-private-ip-addresses --network-interface-id "$eni" --private-ip-addresses "$address"
got=$(ec2 describe-network-interfaces --network-interface-ids "$eni" --query 'length(NetworkInterfaces[0].PrivateIpAddresses)')
check "unassign-private-ip-addresses" "$got" "3"

# Five more, so that there is more than one of the smallest pages. A file each: the CLI writes a line in two pieces,
# which mix with those of others.
for i in 1 2 3 4 5; do
	ec2 "${create[@]}" --query NetworkInterface.NetworkInterfaceId >"$answers/$i" &
done
wait
mapfile -t extra < <(cat "$answers"/*)
made+=("${extra[@]}")
check "five more at the same time" "${#extra[@]}" "5"
all=$(printf '%s\n' "${made[@]}" | spread)
list=(describe-network-interfaces --filters "Name=tag:run,Values=$run_tag" --query 'NetworkInterfaces[].NetworkInterfaceId')
check "describe with a tag filter" "$(ec2 "${list[@]}" | spread)" "$all"
got=$(ec2 describe-network-interfaces --filters "Name=tag-key,Values=run" "Name=status,Values=available" \
	"Name=description,Values=awscli-*-$$" --query 'length(NetworkInterfaces)')
check "describe with three filters and a wildcard" "$got" "5"
check "pages of 5 (--page-size)" "$(ec2 "${list[@]}" --page-size 5 | spread)" "$all"

first=$(ec2 describe-network-interfaces --filters "Name=tag:run,Values=$run_tag" --page-size 5 --max-items 4 --output json)
token=$(sed -n 's/.*"NextToken": "\(.*\)".*/\1/p' <<<"$first")
rest=$(ec2 describe-network-interfaces --filters "Name=tag:run,Values=$run_tag" --page-size 5 \
	--starting-token "$token" --output json)
ids=$(grep -ho '"NetworkInterfaceId": "[^"]*"' <<<"$first$rest" | cut -d'"' -f4 | spread)
check "four and then the rest (--max-items, --starting-token)" "$(grep -c '"NetworkInterfaceId"' <<<"$first") $ids" "4 $all"

refused "device index in use" InvalidParameterValue attach-network-interface --network-interface-id "${extra[0]}" \
	--instance-id "$INSTANCE_ID" --device-index "$first_free"
refused "deleting what is in use" InvalidParameterValue delete-network-interface --network-interface-id "$eni"
refused "unknown ENI" InvalidNetworkInterfaceID.NotFound describe-network-interfaces \
	--network-interface-ids eni-00000000000000000
refused "dry run" DryRunOperation delete-network-interface --network-interface-id "${extra[0]}" --dry-run

ec2 detach-network-interface --attachment-id "$attachment"
check "detach-network-interface, and it becomes available" "$(until_eni "$eni" Status available)" "available"
delete_made
check "delete-network-interface" "$(ec2 "${list[@]}" | spread)" "$(printf '' | spread)"
made=()

exit "$failed"
