-- Costs the same CPU work each time, and answers with the member's name.
local n = 1
for i = 1, 400000 do
    n = (n * 1103515245 + 12345 + i) % 2147483648
end
lighty.header["Content-Type"] = "text/plain"
lighty.content = { os.getenv("CROFT_MEMBER") or "", "\n" }
return 200
