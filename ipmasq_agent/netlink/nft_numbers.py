"""The numbers of nf_tables, by the kernel's own names: include/uapi/linux/netfilter/nf_tables.h.

Plain numbers rather than members of an ``enum``: each use of one of those costs four times as
much, and a list of rules takes some hundred thousand uses.
"""

from ipmasq_agent.policy.addresses import Family

# enum nf_tables_msg_types
NFT_MSG_NEWTABLE, NFT_MSG_GETTABLE, NFT_MSG_DELTABLE = 0, 1, 2
NFT_MSG_NEWCHAIN, NFT_MSG_GETCHAIN, NFT_MSG_DELCHAIN = 3, 4, 5
NFT_MSG_NEWRULE, NFT_MSG_GETRULE, NFT_MSG_DELRULE = 6, 7, 8
NFT_MSG_NEWSET, NFT_MSG_GETSET, NFT_MSG_DELSET = 9, 10, 11
NFT_MSG_NEWSETELEM, NFT_MSG_GETSETELEM, NFT_MSG_DELSETELEM = 12, 13, 14
NFT_MSG_NEWGEN, NFT_MSG_GETGEN = 15, 16

# enum nft_gen_attributes, nft_table_attributes, nft_table_flags
NFTA_GEN_ID = 1
NFTA_TABLE_NAME, NFTA_TABLE_FLAGS, NFTA_TABLE_USE, NFTA_TABLE_HANDLE = 1, 2, 3, 4
NFTA_TABLE_USERDATA = 6
NFT_TABLE_F_DORMANT = 1

# enum nft_chain_attributes, nft_hook_attributes, nft_rule_attributes
NFTA_CHAIN_TABLE, NFTA_CHAIN_HANDLE, NFTA_CHAIN_NAME, NFTA_CHAIN_HOOK = 1, 2, 3, 4
NFTA_CHAIN_POLICY, NFTA_CHAIN_TYPE = 5, 7
NFTA_HOOK_HOOKNUM, NFTA_HOOK_PRIORITY = 1, 2
NFTA_RULE_TABLE, NFTA_RULE_CHAIN, NFTA_RULE_HANDLE, NFTA_RULE_EXPRESSIONS = 1, 2, 3, 4
NFTA_RULE_USERDATA = 7

# enum nft_set_attributes, nft_set_flags, nft_set_elem_list_attributes, nft_set_elem_attributes
NFTA_SET_TABLE, NFTA_SET_NAME, NFTA_SET_FLAGS, NFTA_SET_KEY_TYPE, NFTA_SET_KEY_LEN = 1, 2, 3, 4, 5
NFTA_SET_DATA_TYPE, NFTA_SET_DATA_LEN, NFTA_SET_ID, NFTA_SET_USERDATA = 6, 7, 10, 13
NFTA_SET_HANDLE, NFTA_SET_COUNT = 16, 20
NFT_SET_INTERVAL, NFT_SET_MAP = 0x4, 0x8
NFTA_SET_ELEM_LIST_TABLE, NFTA_SET_ELEM_LIST_SET, NFTA_SET_ELEM_LIST_ELEMENTS = 1, 2, 3
NFTA_SET_ELEM_KEY, NFTA_SET_ELEM_DATA, NFTA_SET_ELEM_FLAGS = 1, 2, 3
NFT_SET_ELEM_INTERVAL_END = 1

# enum nft_list_attributes, nft_data_attributes, nft_verdict_attributes, nft_expr_attributes;
# those of each kind of expression are told where these are (expressions.py)
NFTA_LIST_ELEM = 1
NFTA_DATA_VALUE, NFTA_DATA_VERDICT = 1, 2
NFTA_VERDICT_CODE, NFTA_VERDICT_CHAIN = 1, 2
NFTA_EXPR_NAME, NFTA_EXPR_DATA = 1, 2

# include/uapi/linux/netfilter.h, with enum nft_verdicts and nft_registers
NF_DROP, NF_ACCEPT = 0, 1
NFT_JUMP, NFT_GOTO, NFT_RETURN = -3, -4, -5
NF_INET_PRE_ROUTING, NF_INET_POST_ROUTING = 0, 4
NFPROTO_INET, NFPROTO_IPV4, NFPROTO_IPV6 = 1, 2, 10
PROTOCOL = {Family.IPV4: NFPROTO_IPV4, Family.IPV6: NFPROTO_IPV6}
NFT_FAMILY = {Family.IPV4: "ip", Family.IPV6: "ip6"}  # as the nft program names them
NFT_REG_VERDICT = 0

# What expressions ask and do: enum nft_payload_bases, nft_meta_keys, nft_ct_keys, nft_fib_*,
# nft_ng_types, nft_byteorder_ops, nft_cmp_ops (of which nft_range_ops are the beginning)
NFT_PAYLOAD_LL_HEADER, NFT_PAYLOAD_NETWORK_HEADER, NFT_PAYLOAD_TRANSPORT_HEADER = 0, 1, 2
NFT_META_PROTOCOL, NFT_META_MARK, NFT_META_IIF, NFT_META_OIF = 1, 3, 4, 5
NFT_META_IIFNAME, NFT_META_OIFNAME, NFT_META_NFPROTO, NFT_META_L4PROTO = 6, 7, 15, 16
NFT_CT_STATE, NFT_CT_SRC, NFT_CT_DST = 0, 8, 9
NFT_CT_SRC_IP, NFT_CT_DST_IP, NFT_CT_SRC_IP6, NFT_CT_DST_IP6 = 19, 20, 21, 22
NFT_FIB_RESULT_ADDRTYPE, NFTA_FIB_F_SADDR, NFTA_FIB_F_DADDR = 3, 1, 2
NFT_NG_RANDOM = 1
NFT_BYTEORDER_HTON = 1
NFT_CMP_EQ, NFT_CMP_NEQ, NFT_CMP_LT, NFT_CMP_LTE, NFT_CMP_GT, NFT_CMP_GTE = range(6)
NFT_BITWISE_BOOL = 0
NFT_LOOKUP_F_INV = 1
NFT_NAT_SNAT = 0
NFT_OBJECT_COUNTER = 1

# include/uapi/linux/netfilter/nf_nat.h
NF_NAT_RANGE_MAP_IPS, NF_NAT_RANGE_PROTO_SPECIFIED = 1 << 0, 1 << 1
NF_NAT_RANGE_PROTO_RANDOM_FULLY, NF_NAT_RANGE_NETMAP = 1 << 4, 1 << 6

# Types of keys and data as the nft program numbers them (its include/datatype.h): to the
# kernel all but verdicts are mere numbers
TYPE_IPADDR, TYPE_IP6ADDR, TYPE_IFNAME = 7, 8, 41
NFT_DATA_VERDICT = 0xFFFFFF00
